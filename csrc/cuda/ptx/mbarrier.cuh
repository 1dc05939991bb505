// mbarrier: a barrier object in shared memory that threads arrive at and that asynchronous copies complete (sm_90).
//
// PTX ISA 9.7.13.15, "mbarrier". A phase completes when the expected arrivals have come and the bytes that were
// announced by expect_tx have arrived; the next phase begins at once, with the count given to init. Phases alternate in
// parity, the first one's is 0: waiting for parity p returns when the phase that runs is not one of parity p.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda::ptx {

struct Mbarrier {
  uint64_t word;
};

#if !defined(WARPWRIGHT_BACKEND_EMULATED)
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}
#endif

__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, unsigned arrivals) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::mbarrier_init(barrier, arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#endif
}

// Ends the object: its memory may be used for something else, or initialised again.
__device__ __forceinline__ void mbarrier_invalidate(Mbarrier* barrier) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::mbarrier_invalidate(barrier);
#else
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];\n" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// Makes the initialisations of the calling thread known to asynchronous copies and to the cluster's other blocks, once
// a barrier follows (PTX ISA 9.7.13.4, "fence.mbarrier_init").
__device__ __forceinline__ void fence_mbarrier_init() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::fence_mbarrier_init();
#else
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
#endif
}

// One arrival; what the thread did before is seen by who waits for the phase.
__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::mbarrier_arrive(barrier, 1, 0);
#else
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// One arrival at the object that block `rank` of the cluster has where `barrier` is here. What this thread wrote itself
// is published in its own block alone: at cluster scope each arrival would be a fence of the whole device
// (MEMBAR.ALL.GPU). It says that shared memory which copies filled and products have read may be filled again.
__device__ __forceinline__ void mbarrier_arrive_remote(Mbarrier* barrier, unsigned rank) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::mbarrier_arrive(emulator::map_shared(barrier, rank), 1, 0);
#else
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cta.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
#endif
}

// Announces `bytes` that asynchronous copies will bring in the phase that runs.
__device__ __forceinline__ void mbarrier_expect(Mbarrier* barrier, unsigned bytes) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::mbarrier_arrive(barrier, 0, bytes);
#else
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

// The two at once.
__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::mbarrier_arrive(barrier, 1, bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}

// Whether the phase of this parity is over; if so, what its arrivals published is seen by this thread.
__device__ __forceinline__ bool mbarrier_test_wait(Mbarrier* barrier, unsigned parity) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  return emulator::mbarrier_wait(barrier, parity, false);
#else
  unsigned done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.test_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
#endif
}

// Waits until the phase of this parity is over.
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::mbarrier_wait(barrier, parity, true);
#else
  // try_wait sleeps for a while of the hardware's choice and may return before the phase is over.
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again_%=;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

}  // namespace warpwright::cuda::ptx
