// Named barriers: some of a block's threads meet at one of 16 barriers (sm_70).
//
// PTX ISA 9.7.13.1, "barrier". A barrier completes when `threads` of the block's threads have arrived, whole warps
// of them; those that called sync go on then, those that called arrive never waited. Barrier 0 is __syncthreads'.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda::ptx {

__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::named_barrier(id, threads, true);
#else
  asm volatile("barrier.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
#endif
}

__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::named_barrier(id, threads, false);
#else
  asm volatile("barrier.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
#endif
}

}  // namespace warpwright::cuda::ptx
