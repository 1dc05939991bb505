// Fences between the two ways to shared memory: a thread's own loads and stores (the generic proxy), and those that TMA
// and wgmma do for it (the async proxy) (sm_90).
//
// PTX ISA 9.7.13.4, "membar, fence": fence.proxy.async; 8.6, "Proxies". What threads wrote to shared memory is seen by
// an asynchronous read only with a fence between the two: the writer's, before what orders the threads, a barrier.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda::ptx {

__device__ __forceinline__ void fence_proxy_async() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}

}  // namespace warpwright::cuda::ptx
