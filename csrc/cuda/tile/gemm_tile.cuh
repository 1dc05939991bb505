// The tiled product that matmul and convolution share: what differs is where an element of an operand lies.
//
// Each block computes a kBlockM x kBlockN tile of the output. It walks K in steps of kBlockK: both operands' tiles go
// to shared memory in float32, and each thread multiplies a kThreadM x kThreadN square of them in registers. The sums
// are moved to a second set of registers every kPromoteK, so that a long K costs no more digits than a short one.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda {

inline constexpr int kBlockM = 64, kBlockN = 64, kBlockK = 16;
inline constexpr int kThreadM = 4, kThreadN = 4;
inline constexpr int kGemmThreadsM = kBlockM / kThreadM, kGemmThreadsN = kBlockN / kThreadN;
inline constexpr int kGemmThreads = kGemmThreadsM * kGemmThreadsN;
inline constexpr int kPromoteK = 64;
static_assert(kBlockM * kBlockK % kGemmThreads == 0 && kBlockN * kBlockK % kGemmThreads == 0,
              "every thread loads as much");
static_assert(kPromoteK % kBlockK == 0, "promotion falls between two steps");

// Rows [first, first + kRows) and columns [k0, k0 + kBlockK) of an operand, zero past its edges, as tile[k][row].
// `along_k` makes neighbouring threads read neighbouring columns, else neighbouring rows: whichever lies together.
template <int kRows, class Operand>
__device__ __forceinline__ void load_tile(float (&tile)[kBlockK][kRows + 1], const Operand& operand, int64_t first,
                                          int64_t rows, int64_t k0, int64_t k, bool along_k) {
#pragma unroll
  for (int step = 0; step < kRows * kBlockK / kGemmThreads; ++step) {
    const int i = step * kGemmThreads + static_cast<int>(threadIdx.x);
    const int row = along_k ? i / kBlockK : i % kRows;
    const int col = along_k ? i % kBlockK : i / kRows;
    const bool inside = first + row < rows && k0 + col < k;
    tile[col][row] = inside ? operand(first + row, k0 + col) : 0.0f;
  }
}

// Where the block's tile lies in an m x n output whose tiles are numbered row by row.
struct TileOrigin {
  int64_t m0, n0;
};
__device__ __forceinline__ TileOrigin tile_origin(int64_t tile, int64_t n) {
  const int64_t tiles_n = (n + kBlockN - 1) / kBlockN;
  return {tile / tiles_n * kBlockM, tile % tiles_n * kBlockN};
}
WARPWRIGHT_HOST_DEVICE int64_t tile_count(int64_t m, int64_t n) {
  return ((m + kBlockM - 1) / kBlockM) * ((n + kBlockN - 1) / kBlockN);
}

// A thread's sums lie kGemmThreadsM rows and kGemmThreadsN columns apart.
__device__ __forceinline__ int thread_row() { return static_cast<int>(threadIdx.x) / kGemmThreadsN; }
__device__ __forceinline__ int thread_col() { return static_cast<int>(threadIdx.x) % kGemmThreadsN; }

// totals[i][j] = the sum over k of a(row, k) * b(col, k), for the thread's rows and columns of the tile.
template <class A, class B>
__device__ __forceinline__ void tile_sums(TileOrigin origin, int64_t m, int64_t n, int64_t k, const A& a,
                                          bool a_along_k, const B& b, bool b_along_k,
                                          float (&totals)[kThreadM][kThreadN]) {
  // One column of padding: a warp that writes along k would otherwise hit one bank.
  __shared__ float a_tile[kBlockK][kBlockM + 1];
  __shared__ float b_tile[kBlockK][kBlockN + 1];
  const int thread_m = thread_row(), thread_n = thread_col();
#pragma unroll
  for (auto& row : totals) {
#pragma unroll
    for (float& total : row) total = 0.0f;
  }
  float sums[kThreadM][kThreadN] = {};
  for (int64_t k0 = 0; k0 < k; k0 += kBlockK) {
    load_tile<kBlockM>(a_tile, a, origin.m0, m, k0, k, a_along_k);
    load_tile<kBlockN>(b_tile, b, origin.n0, n, k0, k, b_along_k);
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kBlockK; ++step) {
      float a_values[kThreadM], b_values[kThreadN];
#pragma unroll
      for (int i = 0; i < kThreadM; ++i) a_values[i] = a_tile[step][thread_m + i * kGemmThreadsM];
#pragma unroll
      for (int j = 0; j < kThreadN; ++j) b_values[j] = b_tile[step][thread_n + j * kGemmThreadsN];
#pragma unroll
      for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
        for (int j = 0; j < kThreadN; ++j) sums[i][j] += a_values[i] * b_values[j];
      }
    }
    __syncthreads();  // The next step overwrites the tiles.
    if ((k0 + kBlockK) % kPromoteK == 0 || k0 + kBlockK >= k) {
#pragma unroll
      for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
        for (int j = 0; j < kThreadN; ++j) {
          totals[i][j] += sums[i][j];
          sums[i][j] = 0.0f;
        }
      }
    }
  }
}

// Calls store(row, col, sum over k of a(row, k) * b(col, k)) for every element of the tile inside m x n.
template <class A, class B, class Store>
__device__ __forceinline__ void gemm_tile(TileOrigin origin, int64_t m, int64_t n, int64_t k, const A& a,
                                          bool a_along_k, const B& b, bool b_along_k, const Store& store) {
  float totals[kThreadM][kThreadN];
  tile_sums(origin, m, n, k, a, a_along_k, b, b_along_k, totals);
#pragma unroll
  for (int i = 0; i < kThreadM; ++i) {
    const int64_t row = origin.m0 + thread_row() + i * kGemmThreadsM;
#pragma unroll
    for (int j = 0; j < kThreadN; ++j) {
      const int64_t col = origin.n0 + thread_col() + j * kGemmThreadsN;
      if (row < m && col < n) store(row, col, totals[i][j]);
    }
  }
}

}  // namespace warpwright::cuda
