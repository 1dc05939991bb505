// What a batch norm behind a convolution needs to know of each tile of its output, found while the block still has the
// tile: partial results as cuda/channel_norm joins them, with the tile's rows for a slab.

#pragma once

#include "cuda/dtype.cuh"
#include "cuda/tile/reduction.cuh"
#include "kernels/conv.h"

namespace warpwright::cuda {

// Writes each channel's mean over the first `rows` rows of a staged tile, and the squared differences to it. The values
// are those that are stored, rounded: what is normalised with these statistics, and what the backward pass reads.
// `channel` is that of the tile's first column.
//
// Half a warp has 16 columns, and the halves take turns at pairs of rows: two rows lie half the banks apart, so that no
// two lanes meet in a bank.
template <class T, class Tile>
__device__ __forceinline__ void store_statistics(const ConvParams& p, const float* staged, int rows, int64_t slab,
                                                 int64_t channel, int64_t channels) {
  constexpr int kColumns = kWarpSize / 2, kPair = 2;
  static_assert(Tile::kThreads / kWarpSize * kColumns == Tile::kN);
  static_assert(kPair * Tile::kStagedColumns % kWarpSize == kColumns);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int column = static_cast<int>(threadIdx.x) / kWarpSize * kColumns + lane % kColumns;
  const bool holds = column < channels;
  const float bias = holds && p.bias != nullptr ? to_float(static_cast<const T*>(p.bias)[channel + column]) : 0.0f;
  const float* const sums = staged + column;
  const auto value = [&](int row) { return to_float(from_float<T>(sums[row * Tile::kStagedColumns] + bias)); };
  // The sum of term(a value) over the rows, in both halves. Rows past the end are read too, so that no load waits for a
  // comparison.
  const auto total = [&](const auto& term) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < Tile::kM / 2; ++i) {
      const int row = i / kPair * 2 * kPair + lane / kColumns * kPair + i % kPair;
      const float v = value(row);
      sum += row < rows ? term(v) : 0.0f;
    }
    return sum + __shfl_xor_sync(kFullMask, sum, kColumns);
  };
  // Differences to the first value: a sum of large numbers would cost the mean some digits.
  const float origin = value(0), count = static_cast<float>(rows);
  const float offset = total([&](float v) { return v - origin; }) / count;
  const float squares = total([&](float v) { return (v - origin - offset) * (v - origin - offset); });
  if (!holds || lane >= kColumns) return;
  const int64_t to = slab * p.filters + channel + column;
  p.mean_partials[to] = origin + offset;
  p.square_partials[to] = squares;
}

}  // namespace warpwright::cuda
