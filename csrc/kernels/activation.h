// Params and launchers of the activation family: one pair of kernels, gated or not.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// What is applied: an activation, or relu's square (So et al., "Primer", 2021).
struct ActivationForm {
  Activation activation;
  bool squared;  // With kRelu only.
};

// output = form(gate + gate_bias) * (up + up_bias), or form(gate + gate_bias) without `up`.
struct GluParams {
  Rows gate;              // (rows, cols)
  Rows up;                // (rows, cols), data null without one
  const void* gate_bias;  // (cols) contiguous, or null
  const void* up_bias;    // (cols) contiguous, or null
  void* output;           // (rows, cols) contiguous
  int64_t rows, cols;
  ActivationForm form;
  DType dtype;
};

inline constexpr int64_t kMaxGluPartials = 128;
// Rows of the partial sums of biases' gradients: they depend on the number of rows alone. A group has at least eight
// rows, where there are as many: its sums are written, read and added up once more.
inline constexpr int64_t glu_partials(int64_t rows) {
  constexpr int64_t kGroupRows = 8;
  const int64_t groups = (rows + kGroupRows - 1) / kGroupRows;
  return groups < kMaxGluPartials ? groups : kMaxGluPartials;
}

// Gradients of biases are summed in two stages: group g of the rows sums [rows * g / groups, rows * (g + 1) / groups)
// into row g of the partials, then the rows of the partials are added in order.
struct GluBackwardParams {
  Rows grad_output, gate;  // (rows, cols)
  Rows up;                 // (rows, cols), data null without one
  const void* gate_bias;   // (cols) contiguous, or null
  const void* up_bias;     // (cols) contiguous, or null
  void* grad_gate;         // (rows, cols) contiguous, or null
  void* grad_up;           // (rows, cols) contiguous, or null
  void* grad_gate_bias;    // (cols), or null
  void* grad_up_bias;      // (cols), or null
  void* gate_partials;     // (groups, cols) float, double for float64; null without grad_gate_bias
  void* up_partials;       // the same, null without grad_up_bias
  int64_t rows, cols;
  int64_t groups;  // glu_partials(rows) where there are partials, else rows
  ActivationForm form;
  DType dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(glu, GluParams)
WARPWRIGHT_DECLARE_LAUNCHER(glu_backward, GluBackwardParams)
