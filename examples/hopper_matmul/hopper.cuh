// What steps 6 to 11 share: tiles that TMA brings and wgmma reads, the ring of stages, the sums' way out.

#pragma once

#include <algorithm>

#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "matmul.h"

namespace warpwright::examples {

namespace ptx = cuda::ptx;

using ptx::Mbarrier, ptx::TensorMap;

// A row of a tile is 64 elements of k: the 128 bytes that the swizzle permutes. Eight rows are its pattern.
inline constexpr int kTileK = 64, kRowBytes = 128, kPatternBytes = 8 * kRowBytes;
inline constexpr auto kSwizzle = ptx::Swizzle::k128Bytes;

// Boxes of `box_rows` rows and 64 columns of a row-major matrix. Throws unless its rows are multiples of 16 bytes.
inline TensorMap map_of(const bf16* matrix, int64_t rows, int64_t cols, int box_rows) {
  return ptx::encode_tiled({matrix, DType::kBFloat16, 2, {cols, rows}, {1, cols}}, {{kTileK, box_rows}}, kSwizzle);
}

struct Operands {
  TensorMap a, b;
  MatmulParams matmul;
};

// kRows rows of an operand, 64 elements each.
template <int kRows>
struct alignas(kPatternBytes) Tile {
  unsigned char bytes[kRows * kRowBytes];

  // What tells wgmma where 16 elements of k from `k` on are, of the rows from `row` on, a multiple of 8.
  __device__ __forceinline__ uint64_t operand(int row, int k) const {
    return ptx::wgmma_descriptor(bytes + row * kRowBytes + 2 * k, 0, kPatternBytes, kSwizzle);
  }
};

// Which stage is next, and the parity of its barriers' phases: each turn of the ring is a phase.
template <int kStages>
struct Ring {
  int stage = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// Stores a warpgroup's sums, 64 rows by kN, from (row0, col0) on. `thread` is the thread's number in the warpgroup.
template <int kN>
__device__ __forceinline__ void store_sums(const MatmulParams& p, const float (&sums)[kN / 2], int64_t row0,
                                           int64_t col0, int thread) {
  row0 += thread / 32 * 16 + thread % 32 / 4;
  col0 += thread % 4 * 2;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    const int64_t row = row0 + i / 2 % 2 * 8, col = col0 + i / 4 * 8 + i % 2;
    if (row < p.m && col < p.n) p.c[row * p.n + col] = from_float<bf16>(sums[i]);
  }
}

}  // namespace warpwright::examples
