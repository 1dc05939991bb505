// How the kernels of the sparse family read an element of a weight.

#pragma once

#include "cuda/dtype.cuh"
#include "kernels/sparse.h"

namespace warpwright::cuda {

// Element (row, col) of the dense weight.
template <class T>
__device__ __forceinline__ T dense_element(const Sparse24& weight, int64_t row, int64_t col) {
  const int64_t group = col / 4;
  const int places = weight.places(row, group), place = static_cast<int>(col % 4);
  const bool first = place == (places & 3);
  if (!first && place != places >> 2) return from_float<T>(0.0f);
  const int64_t at = 2 * group + (first ? 0 : 1);
  return static_cast<const T*>(weight.values)[row * weight.values_row + at * weight.values_col];
}

}  // namespace warpwright::cuda
