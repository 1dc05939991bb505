// Which tile of a matrix a block computes.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda {

// Neighbouring blocks share rows of A: a band of this many tiles of B stays in the second-level cache meanwhile.
inline constexpr int64_t kBand = 8;

struct MatrixTile {
  int64_t m0, n0;
};

template <int kTileM, int kTileN>
WARPWRIGHT_HOST_DEVICE int64_t tiles_of(int64_t m, int64_t n) {
  return ((m + kTileM - 1) / kTileM) * ((n + kTileN - 1) / kTileN);
}

// Tile `index` of tiles_of(m, n): band by band, a band's tiles row by row.
template <int kTileM, int kTileN>
__device__ __forceinline__ MatrixTile banded_tile(int64_t index, int64_t m, int64_t n) {
  const int64_t tiles_m = (m + kTileM - 1) / kTileM, tiles_n = (n + kTileN - 1) / kTileN;
  const int64_t band = index / (kBand * tiles_m), first = band * kBand;
  const int64_t width = tiles_n - first < kBand ? tiles_n - first : kBand;
  const int64_t within = index % (kBand * tiles_m);
  return {within / width * kTileM, (first + within % width) * kTileN};
}

}  // namespace warpwright::cuda
