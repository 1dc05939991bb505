// Clusters: blocks that run together and reach each other's shared memory (sm_90).
//
// PTX ISA 9.7.13.3, "barrier.cluster"; 9.7.9.23, "mapa"; 10, "%cluster_ctarank" and "%cluster_nctarank". The barrier of
// a cluster waits for every thread of every block; what a thread wrote before it arrived is seen by who has waited.
// Where there are no clusters yet, each block is one by itself.

#pragma once

#include "cuda/runtime.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define WARPWRIGHT_CLUSTERS 0
#else
#define WARPWRIGHT_CLUSTERS 1
#endif

namespace warpwright::cuda::ptx {

// The block's place in its cluster, from 0.
__device__ __forceinline__ unsigned cluster_rank() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  return emulator::cluster_rank();
#elif !WARPWRIGHT_CLUSTERS
  return 0;
#else
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
#endif
}

__device__ __forceinline__ unsigned cluster_size() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  return emulator::cluster_size();
#elif !WARPWRIGHT_CLUSTERS
  return 1;
#else
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;\n" : "=r"(size));
  return size;
#endif
}

__device__ __forceinline__ void cluster_arrive() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::cluster_arrive();
#elif WARPWRIGHT_CLUSTERS
  asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::cluster_wait();
#elif WARPWRIGHT_CLUSTERS
  asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// Where block `rank` of the cluster has what `shared` is here: a generic address that ordinary loads and stores take.
template <class T>
__device__ __forceinline__ T* map_shared(T* shared, unsigned rank) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  return static_cast<T*>(emulator::map_shared(shared, rank));
#elif !WARPWRIGHT_CLUSTERS
  return shared;
#else
  T* there;
  asm("mapa.u64 %0, %1, %2;\n" : "=l"(there) : "l"(shared), "r"(rank));
  return there;
#endif
}

}  // namespace warpwright::cuda::ptx
