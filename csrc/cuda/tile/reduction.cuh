// Sums and maxima over a warp and over a block, in a fixed order: the same bits every time.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullMask = 0xffffffffu;

struct Sum {
  static __device__ __forceinline__ float identity() { return 0.0f; }
  static __device__ __forceinline__ float combine(float a, float b) { return a + b; }
};

struct Max {
  static __device__ __forceinline__ float identity() { return -INFINITY; }
  static __device__ __forceinline__ float combine(float a, float b) { return fmaxf(a, b); }
};

// Every lane gets the result. All 32 lanes must call.
template <class Op>
__device__ __forceinline__ float warp_reduce(float value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = Op::combine(value, __shfl_xor_sync(kFullMask, value, offset));
  }
  return value;
}

// Every thread gets the result. All kThreads threads must call; calls may follow each other directly, because the
// second barrier keeps a fast warp from overwriting what a slow one still reads.
template <class Op, int kThreads>
__device__ __forceinline__ float block_reduce(float value) {
  static_assert(kThreads % kWarpSize == 0, "a block is made of whole warps");
  constexpr int kWarps = kThreads / kWarpSize;
  __shared__ float warp_results[kWarps];
  value = warp_reduce<Op>(value);
  if (threadIdx.x % kWarpSize == 0) warp_results[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  float total = Op::identity();
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total = Op::combine(total, warp_results[warp]);
  __syncthreads();
  return total;
}

}  // namespace warpwright::cuda
