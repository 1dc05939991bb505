// A tile of a product of bytes on the tensor cores (sm_80): int8, or 8-bit floats. Its pipeline and the sums' way to
// shared memory are those of mma_tile.cuh.
//
// int8 is multiplied as it is, its sums are int32. 8-bit floats become float16 in registers, which holds every one of
// them: that runs where the tensor cores know no 8 bits, and keeps float32's digits, which Hopper's 8-bit product does
// not. A register's four bytes become two registers, of the even and of the odd bytes; both operands are taken apart
// alike, so that the same elements of k meet.

#pragma once

#include <type_traits>

#include "cuda/ptx/mma.cuh"
#include "cuda/tile/mma_tile.cuh"
#include "kernels/scaled.h"

namespace warpwright::cuda {

// As MmaTile, whose elements are pairs of these.
template <int M, int N, int kWarpsDown, int kWarpsAcross, int kDepth>
struct ByteTile : MmaTile<M, N, kWarpsDown, kWarpsAcross, kDepth> {
  using Element = uint8_t;
  static constexpr int kVector = 2 * kChunk, kInner = 2 * kTileK;
  template <bool kAlongK, int kRows>
  static __device__ __forceinline__ int place(int row, int k) {
    static_assert(kAlongK, "ldmatrix does not transpose bytes");
    return chunk_offset<true, kRows>(row, k / 2);
  }
  static_assert(kScaleBlock % kInner == 0, "a block of scales ends between two steps");
};
using LargeByteTile = ByteTile<kTileRows, kTileRows, 2, 4, 4>;

template <class S, class Tile>
using ByteSums = S[Tile::kWarpM / kMmaM][Tile::kWarpN / kMmaN][4];

// How bytes in the high halves of 16-bit halves become float16, but for the format's factor.
struct Decoding {
  uint32_t shift;  // Of the magnitude: float16 has as many exponent bits as e5m2, one more than e4m3.
  uint32_t nan;    // Bits that a magnitude carries into if it is the format's only NaN.
  float unit;      // The factor: the distance of the exponents' biases, as a power of 2.
};
inline Decoding decoding_of(DType dtype) {
  if (dtype == DType::kFloat8E4M3) return {1, 0x80008000u, 256.0f};
  return {0, 0, 1.0f};
}
// Of both operands.
struct Decodings {
  Decoding a, b;
};

__device__ __forceinline__ uint32_t to_halves(uint32_t word, const Decoding& decoding) {
  const uint32_t magnitude = word & 0x7f007f00u;
  const uint32_t nan = ((magnitude + 0x01000100u) & decoding.nan) >> 1;  // The exponent's highest bit makes it NaN.
  return (word & 0x80008000u) | magnitude >> decoding.shift | nan;
}

// sums += the products of one ptx::kProductBytes of k, of kM x 2 kN fragments.
template <int kM, int kN>
__device__ __forceinline__ void multiply_bytes(const Decodings&, int32_t (&sums)[kM][2 * kN][4],
                                               const uint32_t (&a)[kM][4], const uint32_t (&b)[kN][4]) {
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int j = 0; j < 2 * kN; ++j) {
      const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
      ptx::mma<int8_t>(sums[i][j], a[i], column);
    }
  }
}
template <int kM, int kN>
__device__ __forceinline__ void multiply_bytes(const Decodings& formats, float (&sums)[kM][2 * kN][4],
                                               const uint32_t (&a)[kM][4], const uint32_t (&b)[kN][4]) {
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int up = odd ? 0 : 8;  // Even bytes move to where odd ones are.
    uint32_t columns[2 * kN][2];
#pragma unroll
    for (int j = 0; j < 2 * kN; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) columns[j][e] = to_halves(b[j / 2][j % 2 * 2 + e] << up, formats.b);
    }
#pragma unroll
    for (int i = 0; i < kM; ++i) {
      uint32_t rows[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) rows[e] = to_halves(a[i][e] << up, formats.a);
#pragma unroll
      for (int j = 0; j < 2 * kN; ++j) ptx::mma<__half>(sums[i][j], rows, columns[j]);
    }
  }
}

// totals += sums * unit, and sums = 0: without scales by blocks.
template <int kM, int kN>
__device__ __forceinline__ void promote_bytes(const Decodings& formats, float (&sums)[kM][kN][4],
                                              float (&totals)[kM][kN][4]) {
  const float unit = formats.a.unit * formats.b.unit;
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int j = 0; j < kN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        totals[i][j][e] += sums[i][j][e] * unit;
        sums[i][j][e] = 0.0f;
      }
    }
  }
}

// The sums over `steps` steps of Tile::kInner each, as (kM, kStagedColumns) at the start of `shared`, which has
// Tile::kSharedBytes, for all threads to read; S is int32_t, or float for 8-bit floats. start(a_tile, b_tile, step)
// starts the copies of a step's tiles. promote(sums, totals, row, col, block) moves 8-bit floats' sums of each
// kScaleBlock of k to totals; the thread's first element lies at (row, col) of the tile.
template <class Tile, class S, class Start, class Promote>
__device__ __forceinline__ const float* byte_sums(unsigned char* shared, int64_t steps, const Decodings& formats,
                                                  const Start& start, const Promote& promote) {
  constexpr bool kFloat = std::is_same_v<S, float>;
  constexpr int kPairs = ptx::kProductBytes / 2;  // mma_operand.cuh counts elements in pairs.
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_m = warp / Tile::kWarpsN * Tile::kWarpM, warp_n = warp % Tile::kWarpsN * Tile::kWarpN;
  const int lane_m = warp_m + lane / 4, lane_n = warp_n + lane % 4 * 2;  // A thread's first element.
  const auto start_step = [&](int64_t step) {
    unsigned char* const stage = shared + step % Tile::kStages * Tile::kStageBytes;
    if (step < steps) start(stage, stage + Tile::kABytes, step);
    ptx::cp_async_commit();  // Empty past the end: a group for each step keeps the count.
  };

  ByteSums<S, Tile> sums = {};
  ByteSums<float, Tile> totals = {};
#pragma unroll 1
  for (int64_t step = 0; step < Tile::kStages - 1; ++step) start_step(step);
#pragma unroll 1
  for (int64_t step = 0; step < steps; ++step) {
    ptx::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();
    start_step(step + Tile::kStages - 1);
    const unsigned char* const a_tile = shared + step % Tile::kStages * Tile::kStageBytes;
    const unsigned char* const b_tile = a_tile + Tile::kABytes;
#pragma unroll
    for (int k = 0; k < kTileK; k += kPairs) {
      uint32_t a[Tile::kWarpM / kMmaM][4], b[Tile::kWarpN / kMmaN / 2][4];
#pragma unroll
      for (int i = 0; i < Tile::kWarpM / kMmaM; ++i) {
        load_a<true, Tile::kM>(a[i], a_tile, warp_m + i * kMmaM, k, lane);
      }
#pragma unroll
      for (int j = 0; j < Tile::kWarpN / kMmaN / 2; ++j) {
        load_b<true, Tile::kN>(b[j], b_tile, warp_n + j * 2 * kMmaN, k, lane);
      }
      multiply_bytes(formats, sums, a, b);
    }
    if constexpr (kFloat) {
      if ((step + 1) * Tile::kInner % kScaleBlock == 0 || step + 1 == steps) {
        promote(sums, totals, lane_m, lane_n, step * Tile::kInner / kScaleBlock);
      }
    }
  }
  __syncthreads();
  auto* const staged = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < Tile::kWarpM / kMmaM; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kWarpN / kMmaN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = lane_m + i * kMmaM + e / 2 * 8, col = lane_n + j * kMmaN + e % 2;
        staged[row * Tile::kStagedColumns + col] = kFloat ? totals[i][j][e] : static_cast<float>(sums[i][j][e]);
      }
    }
  }
  __syncthreads();
  return staged;
}

}  // namespace warpwright::cuda
