// The order in which the blocks of a persistent product on Hopper take the output's tiles. Its numbers are the host's:
// one kernel serves every order.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda {

// A tile of one matrix of the batch, and the steps along K that are added up for it.
struct WgmmaTile {
  int matrix, split;
  int m0, n0;
  int first_step, steps;
};

// A place is `cluster` tiles below each other, one for each block of a cluster: they read the same columns of B. Every
// split of K has all places of every matrix. Places come band by band: a band is `band` columns of places, taken row by
// row, so that the blocks which run at once share the band's part of B and a few rows of A in the second-level cache.
struct WgmmaWalk {
  unsigned rows, cols;  // Places of a matrix.
  unsigned matrices, splits, band, cluster;
  int steps, split_steps;  // Steps along K, and those of each split but perhaps the last.

  WARPWRIGHT_HOST_DEVICE unsigned places() const { return matrices * splits * rows * cols; }

  // The tile of the cluster's block `rank` at a place.
  template <int kTileM, int kTileN>
  __device__ __forceinline__ WgmmaTile tile(unsigned place, unsigned rank) const {
    const unsigned product = place / (rows * cols), in_product = place % (rows * cols);
    const unsigned first = in_product / (band * rows) * band, in_band = in_product % (band * rows);
    const unsigned width = cols - first < band ? cols - first : band;
    const unsigned row = in_band / width, col = first + in_band % width;
    const auto split = static_cast<int>(product % splits);
    const int first_step = split * split_steps, left = steps - first_step;
    return {static_cast<int>(product / splits), split,      static_cast<int>(row * cluster + rank) * kTileM,
            static_cast<int>(col) * kTileN,     first_step, left < split_steps ? left : split_steps};
  }
};

}  // namespace warpwright::cuda
