// Params and launcher of the scaled family: products of 8-bit matrices that carry scales.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// Elements of k that share a scale, and rows of `other` where a block of those does. 8-bit floats' sums move to a
// second float32 sum this often, whether they have such scales or not.
inline constexpr int kScaleBlockShift = 7, kScaleBlock = 1 << kScaleBlockShift;

// The largest sum of int8 products, 2^14 each, must stay below 2^31.
inline constexpr int64_t kMostInt8Terms = int64_t{1} << 17;

// An operand's scales: one for all, one for each of its rows, or one for each kScaleBlock elements of a row or of
// kScaleBlock rows. Strides count elements and are 0 along what shares a scale.
struct Scales {
  const float* data;
  int64_t row_stride, block_stride;
  int32_t row_shift;  // 2^row_shift rows share a scale.
  bool by_block;      // Whether they change along k: then they are applied to a block's sum, else to the whole one.

  WARPWRIGHT_HOST_DEVICE int64_t offset(int64_t row, int64_t block) const {
    return (row >> row_shift) * row_stride + block * block_stride;
  }
  WARPWRIGHT_HOST_DEVICE float at(int64_t row, int64_t block) const { return data[offset(row, block)]; }
};

// output = activation(dequantised input @ dequantised other.T + bias + residual). Both operands are 8-bit floats, or
// both are int8. Their Rows are matrices: one leading dimension.
struct ScaledMatmulParams {
  Rows input;     // (m, k), one byte an element
  Rows other;     // (n, k), one byte an element
  Rows residual;  // (m, n), data null without one
  Scales input_scale, other_scale;
  const void* bias;  // (n), or null
  void* output;      // (m, n) contiguous
  int64_t m, n, k;
  Activation activation;
  DType input_dtype, other_dtype;
  DType output_dtype;  // float32, float16 or bfloat16; bias and residual have it too.
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(scaled_matmul, ScaledMatmulParams)
