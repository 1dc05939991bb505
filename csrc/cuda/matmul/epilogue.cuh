// What every product does with an element of its accumulators: bias, residual and activation, then it is stored.

#pragma once

#include "cuda/dtype.cuh"
#include "cuda/tile/activation.cuh"
#include "kernels/matmul.h"

namespace warpwright::cuda {

// The sum that the activation is applied to.
template <class T>
__device__ __forceinline__ float with_addends(const GemmParams& p, int64_t row, int64_t col, float value) {
  if (p.bias != nullptr) value += to_float(static_cast<const T*>(p.bias)[col]);
  if (p.residual != nullptr) {
    value += to_float(static_cast<const T*>(p.residual)[row * p.residual_row + col * p.residual_col]);
  }
  return value;
}

template <class T>
__device__ __forceinline__ void store_element(const GemmParams& p, int64_t row, int64_t col, float value) {
  value = with_addends<T>(p, row, col, value);
  const int64_t at = row * p.n + col;
  if (p.preact != nullptr) static_cast<T*>(p.preact)[at] = from_float<T>(value);
  static_cast<T*>(p.output)[at] = from_float<T>(activate(p.activation, value));
}

}  // namespace warpwright::cuda
