// What every product does with an element of its accumulators: bias, residual and activation, then it is stored.

#pragma once

#include "cuda/dtype.cuh"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/float8.cuh"
#include "kernels/matmul.h"

namespace warpwright::cuda {

// The sum that the activation is applied to, at (row, col) of matrix `index` of the batch.
template <class T>
__device__ __forceinline__ float with_addends(const GemmParams& p, int64_t index, int64_t row, int64_t col,
                                              float value) {
  value *= p.alpha;
  if (p.bias != nullptr) value += to_float(static_cast<const T*>(p.bias)[col]);
  if (p.residual != nullptr) {
    const int64_t at = batch_offset(p, p.residual_batch, index) + row * p.residual_row + col * p.residual_col;
    value += p.beta * to_float(static_cast<const T*>(p.residual)[at]);
  }
  return value;
}

// Stores element `at` of an output of another dtype than its operands; what is too large for 8 bits becomes the
// largest.
__device__ __forceinline__ void store_as(DType dtype, void* output, int64_t at, float value) {
  switch (dtype) {
    case DType::kFloat32: static_cast<float*>(output)[at] = value; break;
    case DType::kFloat16: static_cast<__half*>(output)[at] = from_float<__half>(value); break;
    case DType::kBFloat16: static_cast<__nv_bfloat16*>(output)[at] = from_float<__nv_bfloat16>(value); break;
    case DType::kFloat8E4M3: static_cast<uint8_t*>(output)[at] = encode_float8<E4M3>(value); break;
    case DType::kFloat8E5M2: static_cast<uint8_t*>(output)[at] = encode_float8<E5M2>(value); break;
    default: break;  // The bindings let no other dtype through.
  }
}

template <class T>
__device__ __forceinline__ void store_element(const GemmParams& p, int64_t index, int64_t row, int64_t col,
                                              float value) {
  value = with_addends<T>(p, index, row, col, value);
  const int64_t at = (index * p.m + row) * p.n + col;
  const float activated = activate(p.activation, value);
  if (p.preact != nullptr) {
    static_cast<T*>(p.preact)[at] = from_float<T>(needs_preact(p.activation) ? value : activated);
  }
  value = p.output_scale * activated;
  if (p.output_dtype == p.dtype) {
    static_cast<T*>(p.output)[at] = from_float<T>(value);
  } else {
    store_as(p.output_dtype, p.output, at, value);
  }
}

}  // namespace warpwright::cuda
