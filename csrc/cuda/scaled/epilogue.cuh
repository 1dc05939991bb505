// What the products of 8-bit matrices do with an element of their sums.

#pragma once

#include "cuda/dtype.cuh"
#include "cuda/tile/activation.cuh"
#include "kernels/scaled.h"

namespace warpwright::cuda {

// Element `at` of a tensor of the output's dtype.
__device__ __forceinline__ float load_as(DType dtype, const void* data, int64_t at) {
  switch (dtype) {
    case DType::kFloat16: return to_float(static_cast<const __half*>(data)[at]);
    case DType::kBFloat16: return to_float(static_cast<const __nv_bfloat16*>(data)[at]);
    default: return static_cast<const float*>(data)[at];
  }
}

// The output at (row, col), from a sum that scales by blocks have been applied to.
__device__ __forceinline__ float finished(const ScaledMatmulParams& p, int64_t row, int64_t col, float total) {
  if (!p.input_scale.by_block) total *= p.input_scale.at(row, 0);
  if (!p.other_scale.by_block) total *= p.other_scale.at(col, 0);
  if (p.bias != nullptr) total += load_as(p.output_dtype, p.bias, col);
  if (p.residual.data != nullptr) {
    total += load_as(p.output_dtype, p.residual.data, row * p.residual.stride[0] + col * p.residual.col_stride);
  }
  return activate(p.activation, total);
}

}  // namespace warpwright::cuda
