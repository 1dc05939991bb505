// What steps 4 and 5 share: 8 warps multiply a (128, 32) tile of A by one of B with mma.sync, 64 x 32 sums each.

#pragma once

#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "matmul.h"

namespace warpwright::examples {

namespace ptx = cuda::ptx;

inline constexpr int kTile = 128, kTileK = 32;  // A tile's rows, of either operand, and elements of k.
inline constexpr int kThreads = 256;
inline constexpr int kChunk = 8;                 // Elements of 16 bytes, which a uint4 holds.
inline constexpr int kChunks = kTileK / kChunk;  // Of a row of a tile.
// A fifth chunk to a row of four: the eight chunks of a column that ldmatrix reads at once lie in different banks.
inline constexpr int kPadded = kChunks + 1;

struct Tiles {
  uint4 a[kTile][kPadded], b[kTile][kPadded];
};

struct WarpTile {
  static constexpr int kM = 64, kN = 32;
  int row, col, lane;  // Where it lies in the block's tile.
  float sums[kM / 16][kN / 8][4] = {};

  __device__ __forceinline__ WarpTile() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    row = warp / (kTile / kN) * kM;
    col = warp % (kTile / kN) * kN;
    lane = static_cast<int>(threadIdx.x) % 32;
  }

  __device__ __forceinline__ void multiply(const Tiles& tiles) {
#pragma unroll
    for (int k = 0; k < kTileK; k += 16) {
      uint32_t a[kM / 16][4], b[kN / 16][4];
      // Lane l names row l % 8 of matrix l / 8. Of A: (rows 0-7, k 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
#pragma unroll
      for (int i = 0; i < kM / 16; ++i) {
        ptx::ldmatrix_x4<false>(a[i], &tiles.a[row + 16 * i + lane % 16][k / kChunk + lane / 16]);
      }
      // Of B: (rows 0-7, k 0-7), (0-7, 8-15), (8-15, 0-7), (8-15, 8-15): two products' operands.
#pragma unroll
      for (int j = 0; j < kN / 16; ++j) {
        ptx::ldmatrix_x4<false>(b[j], &tiles.b[col + 16 * j + lane / 16 * 8 + lane % 8][k / kChunk + lane / 8 % 2]);
      }
#pragma unroll
      for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) {
          const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          ptx::mma_m16n8k16<bf16>(sums[i][j], a[i], column);
        }
      }
    }
  }

  // Stores the part of C that lies at (m0, n0) of the block's tile.
  __device__ __forceinline__ void store(const MatmulParams& p, int64_t m0, int64_t n0) const {
#pragma unroll
    for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t at_row = m0 + row + 16 * i + e / 2 * 8 + lane / 4,
                        at_col = n0 + col + 8 * j + lane % 4 * 2 + e % 2;
          if (at_row < p.m && at_col < p.n) p.c[at_row * p.n + at_col] = from_float<bf16>(sums[i][j][e]);
        }
      }
    }
  }
};

}  // namespace warpwright::examples
