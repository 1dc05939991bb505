// Matrix times vector. Every element of the matrix is used once, so all that counts is that it arrives: 16 bytes a
// thread, neighbouring threads neighbouring bytes, several loads under way.
//
// Along K (a weight as `linear` has it): a warp, or a block where there are few lines, walks a line, and its lanes'
// sums are added by shuffles. Across K (a weight as `matmul` has it): a thread keeps the sums of 16 bytes of columns
// and walks down K, the warps of a block and `splits` blocks share K, and their sums are added in order.

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/matmul/gemv.cuh"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/reduction.cuh"

namespace warpwright::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;

template <class T>
inline constexpr int kChunk = kPackSize<T>;

// The matrix as `lines` of the output's elements, and the vector.
struct GemvParams {
  GemmParams gemm;
  const void* matrix;
  int64_t matrix_batch[kMaxBatchDims], line, step;  // Strides from element to element of the output, and along K.
  const void* vector;
  int64_t vector_batch[kMaxBatchDims], vector_step;
  int64_t lines;
  float* partials;
  int splits, line_warps;
  bool aligned;  // Whether the matrix' chunks are 16 bytes at a multiple of 16.
};

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// `count` neighbours from `from` on, zeros after them.
template <class T>
__device__ __forceinline__ void load_chunk(float (&values)[kChunk<T>], const T* from, int64_t count, bool aligned) {
  if (aligned && count >= kChunk<T>) {
    const auto pack = *reinterpret_cast<const Pack<T, kChunk<T>>*>(from);
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i) values[i] = to_float(pack.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i) values[i] = i < count ? to_float(from[i]) : 0.0f;
  }
}

template <class T>
__device__ __forceinline__ void finish(const GemvParams& p, int64_t split, int64_t index, int64_t line, float sum) {
  const bool row = p.gemm.m == 1;
  if (p.partials != nullptr) {
    p.partials[(split * p.gemm.matrices() + index) * p.lines + line] = sum;
  } else {
    store_element<T>(p.gemm, index, row ? 0 : line, row ? line : 0, sum);
  }
}

// machine code: LDG.128, SHFL
template <class T>
__global__ void __launch_bounds__(kThreads) gemv_along_k_kernel(const GemvParams p) {
  __shared__ float warp_sums[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int block_lines = kWarps / p.line_warps;
  const int64_t blocks = (p.lines + block_lines - 1) / block_lines;
  const int64_t index = blockIdx.x / blocks, line = blockIdx.x % blocks * block_lines + warp / p.line_warps;
  const int part = warp % p.line_warps;
  float sum = 0.0f;
  if (line < p.lines) {
    const T* const matrix =
        static_cast<const T*>(p.matrix) + batch_offset(p.gemm, p.matrix_batch, index) + line * p.line;
    const T* const vector = static_cast<const T*>(p.vector) + batch_offset(p.gemm, p.vector_batch, index);
    const int64_t stride = static_cast<int64_t>(p.line_warps) * kWarpSize * kChunk<T>;
#pragma unroll 2
    for (int64_t k = (part * kWarpSize + lane) * kChunk<T>; k < p.gemm.k; k += stride) {
      float values[kChunk<T>];
      load_chunk(values, matrix + k, p.gemm.k - k, p.aligned);
      float some = 0.0f;
#pragma unroll
      for (int i = 0; i < kChunk<T>; ++i) {
        if (k + i < p.gemm.k) some += values[i] * to_float(vector[(k + i) * p.vector_step]);
      }
      sum += some;
    }
  }
  sum = warp_reduce<Sum>(sum);
  if (p.line_warps > 1) {
    if (lane == 0) warp_sums[warp] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int i = 0; i < p.line_warps; ++i) sum += warp_sums[warp - part + i];
  }
  if (lane == 0 && part == 0 && line < p.lines) finish<T>(p, 0, index, line, sum);
}

// machine code: LDG.128
template <class T>
__global__ void __launch_bounds__(kThreads) gemv_across_k_kernel(const GemvParams p) {
  constexpr int kColumns = kWarpSize * kChunk<T>;
  __shared__ float warp_sums[kWarps][kColumns];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t blocks = (p.lines + kColumns - 1) / kColumns, matrices = p.gemm.matrices();
  const int64_t split = blockIdx.x / (blocks * matrices), index = blockIdx.x / blocks % matrices;
  const int64_t first_line = blockIdx.x % blocks * kColumns, line = first_line + lane * kChunk<T>;
  const int64_t begin = p.gemm.k * split / p.splits, end = p.gemm.k * (split + 1) / p.splits;
  const T* const matrix = static_cast<const T*>(p.matrix) + batch_offset(p.gemm, p.matrix_batch, index) + line;
  const T* const vector = static_cast<const T*>(p.vector) + batch_offset(p.gemm, p.vector_batch, index);
  float sums[kChunk<T>] = {};
#pragma unroll 4
  for (int64_t k = begin + warp; k < end; k += kWarps) {
    float values[kChunk<T>];
    load_chunk(values, matrix + k * p.step, p.lines - line, p.aligned);
    const float x = to_float(vector[k * p.vector_step]);
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i) sums[i] += values[i] * x;
  }
#pragma unroll
  for (int i = 0; i < kChunk<T>; ++i) warp_sums[warp][lane * kChunk<T> + i] = sums[i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kColumns && first_line + i < p.lines; i += kThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += warp_sums[w][i];
    finish<T>(p, split, index, first_line + i, sum);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

GemvParams params_of(const GemmParams& p) {
  GemvParams v{};
  v.gemm = p;
  const bool row = p.m == 1;  // Then B is the matrix.
  v.matrix = row ? p.b : p.a;
  v.vector = row ? p.a : p.b;
  for (int d = 0; d < kMaxBatchDims; ++d) {
    v.matrix_batch[d] = row ? p.b_batch[d] : p.a_batch[d];
    v.vector_batch[d] = row ? p.a_batch[d] : p.b_batch[d];
  }
  v.line = row ? p.b_row : p.a_row;
  v.step = row ? p.b_col : p.a_col;
  v.vector_step = row ? p.a_col : p.b_col;
  v.lines = row ? p.n : p.m;
  v.splits = v.line_warps = 1;
  return v;
}

bool chunks_aligned(const GemvParams& v, int64_t stride, int64_t chunk) {
  for (int d = 0; d < kMaxBatchDims; ++d) {
    if (v.gemm.batch[d] > 1 && v.matrix_batch[d] % chunk != 0) return false;
  }
  return stride % chunk == 0 && reinterpret_cast<uintptr_t>(v.matrix) % 16 == 0;
}

}  // namespace

bool gemv_takes(const GemmParams& params) {
  if (params.m != 1 && params.n != 1) return false;
  const GemvParams v = params_of(params);
  return v.step == 1 || v.line == 1;
}

bool gemv_along_k(const GemmParams& params) { return params_of(params).step == 1; }

void gemv(const GemmParams& params, int splits, float* partials, Stream stream) {
  GemvParams v = params_of(params);
  if (v.lines == 0 || params.matrices() == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (v.step == 1) {
      constexpr int64_t kFewLines = 2048;  // A warp for each would leave multiprocessors idle.
      v.aligned = chunks_aligned(v, v.line, kChunk<T>);
      v.line_warps = v.lines * params.matrices() < kFewLines ? kWarps : 1;
      const int64_t block_lines = kWarps / v.line_warps, blocks = (v.lines + block_lines - 1) / block_lines;
      const dim3 grid(static_cast<unsigned>(blocks * params.matrices()));
      launch("gemv_along_k", gemv_along_k_kernel<T>, {grid, dim3(kThreads), stream}, v);
    } else {
      constexpr int64_t kColumns = kWarpSize * kChunk<T>;
      v.aligned = chunks_aligned(v, v.step, kChunk<T>);
      v.splits = splits;
      v.partials = splits > 1 ? partials : nullptr;
      const dim3 grid(static_cast<unsigned>((v.lines + kColumns - 1) / kColumns * params.matrices() * splits));
      launch("gemv_across_k", gemv_across_k_kernel<T>, {grid, dim3(kThreads), stream}, v);
      if (splits > 1) reduce_splits(params, partials, splits, stream);
    }
  });
}

}  // namespace warpwright::cuda
