// One operand of a tensor-core product: its tiles in shared memory, how they get there, and how a warp takes fragments.
//
// A tile is kRows rows by kTileK of the inner dimension, 16-bit elements, in chunks of 16 bytes. Whichever
// dimension lies together in global memory lies together in shared memory too, and ldmatrix transposes where it must.
// Chunks are swizzled: the eight that one ldmatrix phase reads together, and the eight that neighbouring threads write
// together, lie in different banks.

#pragma once

#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/ldmatrix.cuh"

namespace warpwright::cuda {

inline constexpr int kTileRows = 128, kTileK = 32;
inline constexpr int kChunk = 8;  // Elements of 16 bits in 16 bytes.
template <int kRows>
inline constexpr int kOperandBytes = kRows * kTileK * 2;
inline constexpr int kTileBytes = kOperandBytes<kTileRows>;

// The rows x k matrix at `data`: elements along `ld`'s other dimension lie together, steps of `ld` elements along it.
struct MmaOperand {
  const uint16_t* data;
  int64_t ld, rows, k;
};

// kAlongK: the inner dimension lies together, and a row of the tile is 4 chunks; else a step of k is kRows / 8 chunks.
template <bool kAlongK, int kRows = kTileRows>
__device__ __forceinline__ int chunk_offset(int row, int k) {
  if constexpr (kAlongK) return (row * (kTileK / kChunk) + (k / kChunk ^ (row / 2 % 4))) * 16;
  static_assert(kAlongK || kRows >= 8 * kChunk, "a step of k has a chunk for each of the swizzle's places");
  return (k * (kRows / kChunk) + (row / kChunk ^ (k % 8))) * 16;
}

// Starts copying kRows rows and kTileK of the inner dimension from (row0, k0) on, zeros past the matrix' edges, to the
// rows from `first` on of a tile of kTall rows, by kThreads threads.
template <bool kAlongK, int kThreads, int kRows = kTileRows, int kTall = kRows>
__device__ __forceinline__ void start_tile(unsigned char* tile, const MmaOperand& operand, int64_t row0, int64_t k0,
                                           int first = 0) {
  constexpr int kChunks = kRows * kTileK / kChunk;
  constexpr int kWidth = (kAlongK ? kTileK : kRows) / kChunk;  // Chunks that lie together.
#pragma unroll
  for (int step = 0; step < (kChunks + kThreads - 1) / kThreads; ++step) {
    const int i = step * kThreads + static_cast<int>(threadIdx.x);
    if (kChunks % kThreads != 0 && i >= kChunks) break;
    const int across = i / kWidth, along = i % kWidth * kChunk;
    const int row = kAlongK ? across : along, k = kAlongK ? along : across;
    const int64_t at_row = row0 + row, at_k = k0 + k;
    const int64_t left = kAlongK ? operand.k - at_k : operand.rows - at_row;  // Elements from here on.
    const bool inside = at_row < operand.rows && at_k < operand.k;
    const int bytes = !inside ? 0 : left < kChunk ? static_cast<int>(left) * 2 : ptx::kCopyBytes;
    const int64_t from = kAlongK ? at_row * operand.ld + at_k : at_k * operand.ld + at_row;
    ptx::cp_async(tile + chunk_offset<kAlongK, kTall>(first + row, k), operand.data + (inside ? from : 0), bytes);
  }
}

// The fragment of A for mma.m16n8k16: rows [row, row + 16), inner elements [k, k + 16).
template <bool kAlongK, int kRows = kTileRows>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const unsigned char* tile, int row, int k, int lane) {
  const int matrix = lane / 8;  // (rows 0-7, k 0-7), (rows 8-15, k 0-7), (rows 0-7, k 8-15), (rows 8-15, k 8-15)
  const int at_row = row + matrix % 2 * 8 + (kAlongK ? lane % 8 : 0);
  const int at_k = k + matrix / 2 * 8 + (kAlongK ? 0 : lane % 8);
  ptx::ldmatrix_x4<!kAlongK>(a, tile + chunk_offset<kAlongK, kRows>(at_row, at_k));
}

// The fragments of B for two mma.m16n8k16: columns [row, row + 8) in b[0..1], the next eight in b[2..3].
template <bool kAlongK, int kRows = kTileRows>
__device__ __forceinline__ void load_b(uint32_t (&b)[4], const unsigned char* tile, int row, int k, int lane) {
  const int matrix = lane / 8;  // (rows 0-7, k 0-7), (rows 0-7, k 8-15), (rows 8-15, k 0-7), (rows 8-15, k 8-15)
  const int at_row = row + matrix / 2 * 8 + (kAlongK ? lane % 8 : 0);
  const int at_k = k + matrix % 2 * 8 + (kAlongK ? 0 : lane % 8);
  ptx::ldmatrix_x4<!kAlongK>(b, tile + chunk_offset<kAlongK, kRows>(at_row, at_k));
}

}  // namespace warpwright::cuda
