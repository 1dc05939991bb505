// Warpgroups that take turns: in a ping-pong schedule one's products run on the tensor cores while another's results
// are stored, and neither may run ahead of its turn (sm_90).

#pragma once

#include "cuda/ptx/mbarrier.cuh"

namespace warpwright::cuda {

// Group 0 begins; the turn goes round. Threads of a group call each function together, whole warps of them.
template <int kGroups, int kGroupWarps = 4>
class Turns {
 public:
  // By one thread, before fence_mbarrier_init and a barrier of the block.
  static __device__ __forceinline__ void init(ptx::Mbarrier (&passed)[kGroups]) {
    for (ptx::Mbarrier& barrier : passed) ptx::mbarrier_init(&barrier, kGroupWarps);
  }

  // Group 0's first turn needs nobody to pass it: the phase before the first counts as over.
  __device__ __forceinline__ Turns(ptx::Mbarrier (&passed)[kGroups], int group)
      : own_(&passed[group]), next_(&passed[(group + 1) % kGroups]), parity_(group == 0 ? 1 : 0) {}

  // Returns when it is this group's turn; what the groups before wrote before they passed theirs is seen.
  __device__ __forceinline__ void wait() {
    ptx::mbarrier_wait(own_, parity_);
    parity_ ^= 1;
  }

  // Ends it. One thread of each warp arrives, when all of them have come here.
  __device__ __forceinline__ void pass() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(next_);
  }

 private:
  ptx::Mbarrier* own_;
  ptx::Mbarrier* next_;
  unsigned parity_;
};

}  // namespace warpwright::cuda
