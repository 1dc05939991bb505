// The tiles of the tensor cores' convolutions, and the sums of each.

#pragma once

#include <type_traits>

#include "cuda/tile/mma_tile.cuh"
#include "cuda/tile/tf32_tile.cuh"
#include "kernels/conv.h"

namespace warpwright::cuda {

// Of 16-bit elements; float32 has Tf32Tile alone.
using LargeConvTile = LargeMmaTile;
using MiddleConvTile = MmaTile<64, 64, 2, 2, 4>;

template <class Tile>
inline constexpr int kConvSharedBytes = Tile::kSharedBytes;
template <>
inline constexpr int kConvSharedBytes<Tf32Tile> = std::max(
    {Tf32Tile::kSharedBytes<true, true>, Tf32Tile::kSharedBytes<true, false>, Tf32Tile::kSharedBytes<false, false>});

// The sums of a tile over steps [first, last): mma_sums, or tf32_sums of the convolution's precision, where `more` is
// not called.
template <class T, class Tile, bool kAAlongK, bool kBAlongK, class Start, class More = NothingMore>
__device__ __forceinline__ const float* conv_sums(const ConvParams& p, unsigned char* shared, int64_t first,
                                                  int64_t last, const Start& start, More&& more = {}) {
  if constexpr (std::is_same_v<Tile, Tf32Tile>) {
    return tf32_sums<kAAlongK, kBAlongK>(shared, first, last, p.precision == Precision::kTf32x3, start);
  } else {
    return mma_sums<T, Tile, kAAlongK, kBAlongK>(shared, first, last, start, more);
  }
}

}  // namespace warpwright::cuda
