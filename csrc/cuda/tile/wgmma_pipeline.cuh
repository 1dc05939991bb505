// The ring of stages in shared memory through which one thread, the producer, hands tiles of operands to the warps that
// multiply them, the consumers (sm_90a).
//
// A stage goes back and forth between them. Its `full` barrier counts the bytes that TMA brings; its `empty` barrier
// counts the consumer warps that are done with it. Blocks of a cluster write into each other's stages: then the warps
// of every block count, in every block.

#pragma once

#include "cuda/ptx/mbarrier.cuh"

namespace warpwright::cuda {

template <int kStages>
struct WgmmaBarriers {
  ptx::Mbarrier full[kStages], empty[kStages];

  // By one thread, before fence_mbarrier_init and a barrier of the cluster.
  __device__ __forceinline__ void init(unsigned consumer_warps) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(&full[stage], 1);  // The producer, with the number of bytes to come.
      ptx::mbarrier_init(&empty[stage], consumer_warps);
    }
  }
};

// Where a thread is in the ring. Each round is a phase of the stages' barriers, and their parity alternates.
template <int kStages>
struct WgmmaStage {
  int index = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance() {
    if (++index < kStages) return;
    index = 0;
    parity ^= 1;
  }

  // Past the steps of somebody else's tile.
  __device__ __forceinline__ void advance(int steps) {
    const int to = index + steps;
    index = to % kStages;
    parity ^= static_cast<unsigned>(to / kStages) & 1;
  }
};

// The producer's: waits for the stage and announces what will come. Returns the barrier on which it must complete.
template <int kStages>
__device__ __forceinline__ ptx::Mbarrier* open_stage(WgmmaBarriers<kStages>& barriers, const WgmmaStage<kStages>& stage,
                                                     unsigned bytes) {
  ptx::mbarrier_wait(&barriers.empty[stage.index], stage.parity ^ 1);  // The first round finds the stages empty.
  ptx::mbarrier_arrive_expect(&barriers.full[stage.index], bytes);
  return &barriers.full[stage.index];
}

// A warp is done with stage `index` of each block of the cluster.
template <int kStages>
__device__ __forceinline__ void release_stage(WgmmaBarriers<kStages>& barriers, int index, unsigned cluster = 1) {
  const unsigned lane = threadIdx.x % 32;
  if (lane < cluster) ptx::mbarrier_arrive_remote(&barriers.empty[index], lane);
}

}  // namespace warpwright::cuda
