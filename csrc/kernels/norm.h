// Params and launchers of the norm family: one pair of kernels, centred (layer norm) or not (RMS norm).

#pragma once

#include "kernels/common.h"

namespace warpwright {

// Weight gradients are summed in two stages so that they come out bitwise equal every time: block b sums its own rows
// into row b of the partials, then the rows of the partials are added in order. The split depends on the number of
// rows alone, never on threads or on the device.
inline constexpr int64_t kMaxNormPartials = 128;
inline constexpr int64_t norm_partials(int64_t rows) { return rows < kMaxNormPartials ? rows : kMaxNormPartials; }

struct NormParams {
  Rows input;          // (rows, cols)
  Rows residual;       // (rows, cols), data null without one
  const void* weight;  // (cols) contiguous, or null
  const void* bias;    // (cols) contiguous, or null
  void* output;        // (rows, cols) contiguous
  void* sum;           // (rows, cols) contiguous, null without a residual
  void* mean;          // (rows) float, double for float64; null unless centred
  void* rstd;          // (rows) float, double for float64
  int64_t rows, cols;
  double eps;
  DType dtype;  // of input, residual, weight, bias, output, sum
};

struct NormBackwardParams {
  Rows grad_output;       // (rows, cols)
  Rows grad_sum;          // (rows, cols), data null where the sum has no gradient
  Rows sum;               // (rows, cols): what was normalised
  const void* weight;     // (cols), or null
  const void* mean;       // (rows) float, double for float64; null unless centred
  const void* rstd;       // (rows) float, double for float64
  void* grad_input;       // (rows, cols) contiguous, or null
  void* grad_weight;      // (cols), or null
  void* grad_bias;        // (cols), or null
  void* weight_partials;  // (norm_partials(rows), cols) float, double for float64; null without grad_weight
  void* bias_partials;    // the same, null without grad_bias
  int64_t rows, cols;
  DType dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(norm_forward, NormParams)
WARPWRIGHT_DECLARE_LAUNCHER(norm_backward, NormBackwardParams)
