// What every grouped product does with a sum.

#pragma once

#include "cuda/dtype.cuh"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/groups.cuh"

namespace warpwright::cuda {

template <class T>
__device__ __forceinline__ void store_element(const GroupedParams& p, int group, int64_t row, int64_t col,
                                              float value) {
  if (p.bias != nullptr) value += to_float(static_cast<const T*>(p.bias)[group * p.n + col]);
  const int64_t at = row * p.n + col;
  if (p.preact != nullptr) static_cast<T*>(p.preact)[at] = from_float<T>(value);
  static_cast<T*>(p.output)[at] = from_float<T>(activate(p.activation, value));
}

// Zeros for the rows of no group: a kRows x kCols tile, by kThreads threads.
template <class T, int kRows, int kCols, int kThreads>
__device__ __forceinline__ void clear_tile(const GroupedParams& p, const RowTile& tile, int64_t col0) {
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kCols; i += kThreads) {
    const int64_t row = int64_t{tile.row0} + i / kCols, col = col0 + i % kCols;
    if (row >= tile.end || col >= p.n) continue;
    static_cast<T*>(p.output)[row * p.n + col] = from_float<T>(0.0f);
    if (p.preact != nullptr) static_cast<T*>(p.preact)[row * p.n + col] = from_float<T>(0.0f);
  }
}

}  // namespace warpwright::cuda
