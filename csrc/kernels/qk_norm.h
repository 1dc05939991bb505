// Params and launchers of the qk_norm family: the RMS norm of each head of queries and keys, then rotary embedding.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// Weight gradients are summed in two stages, as kernels/norm.h has it: the rows of block b into row b of the partials.
inline constexpr int64_t kMaxQkNormPartials = 256;
inline constexpr int64_t qk_norm_partials(int64_t rows) {
  return rows < kMaxQkNormPartials ? rows : kMaxQkNormPartials;
}

// What the lanes of a warp of the CUDA kernels hold, and how far they count.
inline constexpr int64_t kMaxHeadDim = 512, kMaxHeads = 0x7fffffff;

// The queries or the keys.
struct QkNormSide {
  const void* x;  // (batch, sequence, heads, head_dim), any strides
  int64_t x_stride[4];
  const void* grad;  // the gradient of the output, any strides; null forward
  int64_t grad_stride[4];
  const void* weight;  // (head_dim) contiguous, or null
  void* output;        // forward: the result; backward: x's gradient, or null; contiguous
  void* rstd;          // (batch, sequence, heads) float, double for float64: written forward, read backward
  void* grad_weight;   // (head_dim), or null
  void* partials;      // (qk_norm_partials(rows), head_dim) float, double for float64; null without grad_weight
  int64_t heads;
};

// output = rotated(x * rstd * (weight_offset + weight)), with nothing rounded in between; kernels/rotary.h says how
// pairs are rotated.
struct QkNormParams {
  QkNormSide sides[2];
  const void* cos;                 // (batch or 1, sequence, rotary_dim / 2), contiguous
  const void* sin;                 // the same
  int64_t table_batch, table_row;  // strides of cos and sin
  int64_t batch, sequence, head_dim, rotary_dim;
  double eps, weight_offset;
  bool interleaved;
  DType dtype;        // of x, grad, weight, output, grad_weight
  DType table_dtype;  // of cos, sin: float32, or dtype
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(qk_norm_forward, QkNormParams)
WARPWRIGHT_DECLARE_LAUNCHER(qk_norm_backward, QkNormParams)
