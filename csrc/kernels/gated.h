// Params and launchers of the gated family: output = activation(input @ gate_weight.T + gate_bias) *
// (input @ up_weight.T + up_bias). On the CPU the two products are the matmul family's.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// Both products and what follows in one kernel. Strides count elements.
struct GatedParams {
  const void* input;  // (m, k)
  int64_t input_row, input_col;
  const void* gate_weight;  // (n, k)
  int64_t gate_row, gate_col;
  const void* up_weight;  // (n, k)
  int64_t up_row, up_col;
  const void *gate_bias, *up_bias;  // (n), or null
  void* output;                     // (m, n) contiguous
  void* gate;  // like output, or null: what the activation is applied to, or its value: needs_preact
  void* up;    // like output, or null with gate: what the activated gate is multiplied by
  int64_t m, n, k;
  Activation activation;
  DType dtype;  // of every tensor here
  Precision precision;
  bool batch_invariant;  // Whether a row of the output may depend on its row of the input and the weights alone.
};

// output = activation(gate) * up, of products that the CPU's product wrote.
struct GateParams {
  void* gate;      // (count) what the activation is applied to; `keep` leaves what its gradient is taken from
  const void* up;  // (count)
  void* output;    // (count), may be `gate` itself without `keep`
  bool keep;
  int64_t count;
  Activation activation;
  DType dtype;
};

// grad_gate = grad * up * activation'(gate) and grad_up = grad * activation(gate), their sums over the rows in two
// stages of a fixed split, and the gated product again, which no forward pass need keep. All in one pass.
struct GatedBackwardParams {
  Rows grad;        // (rows, cols)
  Rows gate;        // (rows, cols), as GatedParams::gate
  Rows up;          // (rows, cols); data null where nothing is gated, which is up = 1
  void* grad_gate;  // (rows, cols) whose rows lie `grad_row` elements apart, or null
  void* grad_up;    // the same
  int64_t grad_row;
  void* product;                        // (rows, cols) contiguous, or null: activation(gate) * up; may be grad's own
  void *grad_gate_bias, *grad_up_bias;  // (cols), or null
  void *gate_partials, *up_partials;    // (gated_partials, cols) float, double for float64; null without the bias
  int64_t rows, cols;
  Activation activation;
  DType dtype;
};

// Rows of partial sums.
inline constexpr int64_t kMaxGatedPartials = 128;
inline constexpr int64_t gated_partials(int64_t rows) { return rows < kMaxGatedPartials ? rows : kMaxGatedPartials; }

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(gated_backward, GatedBackwardParams)
namespace warpwright::cpu {
void gate(const GateParams& params, Stream);
}
namespace warpwright::cuda {
void gated(const GatedParams& params, Stream stream);
}
