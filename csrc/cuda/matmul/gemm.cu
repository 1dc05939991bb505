// Matrix product with a fused epilogue, for any strides, sizes and alignment.
//
// Each block computes a kBlockM x kBlockN tile of the output. It walks K in steps of kBlockK: both operands' tiles go
// to shared memory in float32, and each thread multiplies a kThreadM x kThreadN square of them in registers. Bias,
// residual and activation are applied to the accumulators, so the product itself never reaches memory.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/activation.cuh"
#include "kernels/matmul.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kBlockM = 64, kBlockN = 64, kBlockK = 16;
constexpr int kThreadM = 4, kThreadN = 4;
constexpr int kThreadsM = kBlockM / kThreadM, kThreadsN = kBlockN / kThreadN;
constexpr int kThreads = kThreadsM * kThreadsN;
static_assert(kBlockM * kBlockK % kThreads == 0 && kBlockN * kBlockK % kThreads == 0, "every thread loads as much");

// Rows [first, first + kRows) and columns [k0, k0 + kBlockK) of a strided matrix, zero past its edges, transposed into
// tile[k][row]. `along_k` makes neighbouring threads read neighbouring columns, else neighbouring rows: whichever lies
// together in memory.
template <int kRows, class T>
__device__ __forceinline__ void load_tile(float (&tile)[kBlockK][kRows + 1], const T* matrix, int64_t row_stride,
                                          int64_t col_stride, int64_t first, int64_t rows, int64_t k0, int64_t k,
                                          bool along_k) {
#pragma unroll
  for (int step = 0; step < kRows * kBlockK / kThreads; ++step) {
    const int i = step * kThreads + static_cast<int>(threadIdx.x);
    const int row = along_k ? i / kBlockK : i % kRows;
    const int col = along_k ? i % kBlockK : i / kRows;
    const bool inside = first + row < rows && k0 + col < k;
    tile[col][row] = inside ? to_float(matrix[(first + row) * row_stride + (k0 + col) * col_stride]) : 0.0f;
  }
}

template <class T>
__device__ __forceinline__ void store_element(const GemmParams& p, int64_t row, int64_t col, float value) {
  if (p.bias != nullptr) value += to_float(static_cast<const T*>(p.bias)[col]);
  if (p.residual != nullptr) {
    value += to_float(static_cast<const T*>(p.residual)[row * p.residual_row + col * p.residual_col]);
  }
  const int64_t at = row * p.n + col;
  if (p.preact != nullptr) static_cast<T*>(p.preact)[at] = from_float<T>(value);
  static_cast<T*>(p.output)[at] = from_float<T>(activate(p.activation, value));
}

template <class T>
__global__ void __launch_bounds__(kThreads) gemm_kernel(const GemmParams p) {
  // One column of padding: a warp that writes along k would otherwise hit one bank.
  __shared__ float a_tile[kBlockK][kBlockM + 1];
  __shared__ float b_tile[kBlockK][kBlockN + 1];
  const int64_t tiles_n = (p.n + kBlockN - 1) / kBlockN;
  const int64_t m0 = blockIdx.x / tiles_n * kBlockM, n0 = blockIdx.x % tiles_n * kBlockN;
  const int thread_m = static_cast<int>(threadIdx.x) / kThreadsN, thread_n = static_cast<int>(threadIdx.x) % kThreadsN;
  const T* a = static_cast<const T*>(p.a);
  const T* b = static_cast<const T*>(p.b);

  float accumulators[kThreadM][kThreadN] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += kBlockK) {
    load_tile<kBlockM>(a_tile, a, p.a_row, p.a_col, m0, p.m, k0, p.k, p.a_col == 1);
    load_tile<kBlockN>(b_tile, b, p.b_row, p.b_col, n0, p.n, k0, p.k, p.b_col == 1);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kBlockK; ++k) {
      float a_values[kThreadM], b_values[kThreadN];
#pragma unroll
      for (int i = 0; i < kThreadM; ++i) a_values[i] = a_tile[k][thread_m + i * kThreadsM];
#pragma unroll
      for (int j = 0; j < kThreadN; ++j) b_values[j] = b_tile[k][thread_n + j * kThreadsN];
#pragma unroll
      for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
        for (int j = 0; j < kThreadN; ++j) accumulators[i][j] += a_values[i] * b_values[j];
      }
    }
    __syncthreads();  // The next step overwrites the tiles.
  }

#pragma unroll
  for (int i = 0; i < kThreadM; ++i) {
    const int64_t row = m0 + thread_m + i * kThreadsM;
#pragma unroll
    for (int j = 0; j < kThreadN; ++j) {
      const int64_t col = n0 + thread_n + j * kThreadsN;
      if (row < p.m && col < p.n) store_element<T>(p, row, col, accumulators[i][j]);
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void gemm(const GemmParams& params, Stream stream) {
  const int64_t tiles = ((params.m + kBlockM - 1) / kBlockM) * ((params.n + kBlockN - 1) / kBlockN);
  if (tiles == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    launch("gemm", gemm_kernel<decltype(tag)>, {dim3(static_cast<unsigned>(tiles)), dim3(kThreads), stream}, params);
  });
}

}  // namespace warpwright::cuda
