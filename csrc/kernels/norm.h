// Params and launchers of the norm family: one pair of kernels for layer norm (centred), RMS norm, and x / |x|.

#pragma once

#include "kernels/dropout_mask.h"

namespace warpwright {

// Weight gradients are summed in two stages so that they come out bitwise equal every time: block b sums its own rows
// into row b of the partials, then the rows of the partials are added in order. The split depends on the rows alone,
// never on threads or on the device. This many keep a GPU's memory busy, and are few beside the rows they come from; on
// the CPU a block has so many rows, where there are as many, since its sums are written, read and added up once more.
inline constexpr int64_t kMaxNormPartials = 256;
namespace cpu {
inline constexpr int64_t kNormBlockRows = 8;
}
namespace cuda {
inline constexpr int64_t kNormBlockRows = 1;
}
inline constexpr int64_t norm_partials(int64_t rows, int64_t block_rows) {
  const int64_t blocks = (rows + block_rows - 1) / block_rows;
  return blocks < kMaxNormPartials ? blocks : kMaxNormPartials;
}

// output = (sum - mean) * rstd * (weight_offset + weight) + bias, with sum = dropout(input) + residual.
struct NormParams {
  Rows input;          // (rows, cols)
  Rows residual;       // (rows, cols), data null without one
  const void* weight;  // (cols) contiguous, or null
  const void* bias;    // (cols) contiguous, or null
  void* output;        // (rows, cols) contiguous
  void* sum;           // (rows, cols) contiguous, null where the sum is the input
  void* mean;          // (rows) float, double for float64; null unless centred
  void* rstd;          // (rows) float, double for float64; with `l2` the length of the row
  int64_t rows, cols;
  double eps;  // Added to the mean square; with `l2` the least length that a row is divided by.
  double weight_offset;
  Dropout dropout;
  bool l2;      // Divide by the length, not by the deviation.
  DType dtype;  // of input, residual, weight, bias, output, sum
};

struct NormBackwardParams {
  Rows grad_output;       // (rows, cols)
  Rows grad_sum;          // (rows, cols), data null where the sum has no gradient
  Rows sum;               // (rows, cols): what was normalised
  const void* weight;     // (cols), or null
  const void* mean;       // (rows) float, double for float64; null unless centred
  const void* rstd;       // (rows) float, double for float64; with `l2` the length of the row
  void* grad_input;       // (rows, cols) contiguous, or null
  void* grad_residual;    // (rows, cols) contiguous, or null: grad_input without the dropout
  void* grad_weight;      // (cols), or null
  void* grad_bias;        // (cols), or null
  void* weight_partials;  // (norm_partials, cols) float, double for float64; null without grad_weight
  void* bias_partials;    // the same, null without grad_bias
  int64_t rows, cols;
  double eps;  // With `l2` only.
  double weight_offset;
  Dropout dropout;
  bool l2;
  DType dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(norm_forward, NormParams)
WARPWRIGHT_DECLARE_LAUNCHER(norm_backward, NormBackwardParams)
