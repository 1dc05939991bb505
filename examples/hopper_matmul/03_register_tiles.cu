// Step 3: each thread computes 8 x 8 elements from registers. Any sizes.

#include "matmul.h"

namespace warpwright::examples {
namespace {

constexpr int kTileM = 128, kTileN = 128, kTileK = 16;
constexpr int kThreadsM = 16, kThreadsN = 16, kThreads = kThreadsM * kThreadsN;
constexpr int kPerM = kTileM / kThreadsM, kPerN = kTileN / kThreadsN;  // A thread's part of the tile: 8 x 8.
// Two rows of 16 elements along k, which a warp writes at once, then lie in 32 different banks.
constexpr int kPadded = kTileM + 2;
static_assert(kTileM == kTileN, "both operands' tiles have the same shape");

// kTileM rows of a (rows, k) matrix from (row0, k0) on, zeros past its edges, with k across.
__device__ __forceinline__ void load_tile(float (&tile)[kTileK][kPadded], const bf16* matrix, int64_t rows, int64_t k,
                                          int64_t row0, int64_t k0) {
#pragma unroll
  for (int step = 0; step < kTileM * kTileK / kThreads; ++step) {
    const int i = step * kThreads + static_cast<int>(threadIdx.x), row = i / kTileK, col = i % kTileK;
    const bool inside = row0 + row < rows && k0 + col < k;
    tile[col][row] = inside ? to_float(matrix[(row0 + row) * k + k0 + col]) : 0.0f;
  }
}

// machine code: 1024 x FFMA, LDS, STS
__global__ void __launch_bounds__(kThreads) register_tiles_kernel(const MatmulParams p) {
  __shared__ float a_tile[kTileK][kPadded], b_tile[kTileK][kPadded];
  const int thread_m = static_cast<int>(threadIdx.x) / kThreadsN, thread_n = static_cast<int>(threadIdx.x) % kThreadsN;
  const int64_t m0 = int64_t{blockIdx.y} * kTileM, n0 = int64_t{blockIdx.x} * kTileN;
  float sums[kPerM][kPerN] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += kTileK) {
    load_tile(a_tile, p.a, p.m, p.k, m0, k0);
    load_tile(b_tile, p.b, p.n, p.k, n0, k0);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kTileK; ++k) {
      float a[kPerM], b[kPerN];
#pragma unroll
      for (int i = 0; i < kPerM; ++i) a[i] = a_tile[k][thread_m + i * kThreadsM];
#pragma unroll
      for (int j = 0; j < kPerN; ++j) b[j] = b_tile[k][thread_n + j * kThreadsN];
#pragma unroll
      for (int i = 0; i < kPerM; ++i) {
#pragma unroll
        for (int j = 0; j < kPerN; ++j) sums[i][j] += a[i] * b[j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kPerM; ++i) {
    const int64_t row = m0 + thread_m + i * kThreadsM;
#pragma unroll
    for (int j = 0; j < kPerN; ++j) {
      const int64_t col = n0 + thread_n + j * kThreadsN;
      if (row < p.m && col < p.n) p.c[row * p.n + col] = from_float<bf16>(sums[i][j]);
    }
  }
}

void register_tiles(const MatmulParams& p, Stream stream) {
  launch("03_register_tiles", register_tiles_kernel, {grid_of<kTileM, kTileN>(p), dim3(kThreads), stream}, p);
}

}  // namespace
}  // namespace warpwright::examples

WARPWRIGHT_STEP(matmul_03_register_tiles, register_tiles)
