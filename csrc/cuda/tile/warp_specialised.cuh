// A block whose warpgroups do different work (sm_90a): a thread of the first one, the producer, has TMA fill the ring's
// stages, and the others, the consumers, multiply what has come and take the sums to global memory. The producer never
// waits for an epilogue: while a tile is finished, the next one's first stages fill.

#pragma once

#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/elect.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/tile/wgmma_pipeline.cuh"

namespace warpwright::cuda {

inline constexpr int kWgmmaConsumers = 2, kWgmmaWarps = 4;  // Warpgroups that multiply, and warps of one.
inline constexpr int kWgmmaThreads = ptx::kWarpgroup * (1 + kWgmmaConsumers);
// Of the registers that the launch gives to each thread, the producer's pass to the consumers, who hold a tile.
inline constexpr int kProducerRegisters = 24;  // The fewest there can be: enough to count tiles and start copies.
WARPWRIGHT_HOST_DEVICE constexpr int consumer_registers(int producer_registers) {
  return (64 * 1024 / ptx::kWarpgroup - producer_registers) / kWgmmaConsumers / 8 * 8;  // Come by eights.
}
inline constexpr int kMostSharedBytes = 227 * 1024;  // A block's.

// How a block's shared memory is laid out: stages, as many as fit, what the epilogues need, the ring's barriers.
template <int kTheStageBytes, int kBufferBytes>
struct WgmmaShared {
  static constexpr int kStageBytes = kTheStageBytes;
  static constexpr int kStages =
      (kMostSharedBytes - kBufferBytes) / (kStageBytes + static_cast<int>(sizeof(WgmmaBarriers<1>)));
  using Barriers = WgmmaBarriers<kStages>;
  using Stage = WgmmaStage<kStages>;
  static constexpr int kBuffersAt = kStages * kStageBytes, kBarriersAt = kBuffersAt + kBufferBytes;
  static constexpr int kBytes = kBarriersAt + static_cast<int>(sizeof(Barriers));
  static_assert(kStages >= 3 && kBytes <= kMostSharedBytes && kBarriersAt % alignof(Barriers) == 0);

  static __device__ __forceinline__ Barriers& ring(unsigned char* shared) {
    return *reinterpret_cast<Barriers*>(shared + kBarriersAt);
  }
};

// What a kernel does: init() by one thread, for the barriers; produce(leader) by the producer's warp, one lane of which
// leads; consume(consumer) by each consumer. kRegisters are the producer's.
template <int kRegisters = kProducerRegisters, class Init, class Produce, class Consume>
__device__ __forceinline__ void specialise_warps(const Init& init, const Produce& produce, const Consume& consume) {
  if (threadIdx.x == 0) {
    init();
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_sync();
  const int warpgroup = static_cast<int>(threadIdx.x) / ptx::kWarpgroup;
  if (warpgroup == 0) {
    ptx::release_registers<kRegisters>();
    if (threadIdx.x < 32) produce(ptx::elect_one());
  } else {
    ptx::take_registers<consumer_registers(kRegisters)>();
    consume(warpgroup - 1);
  }
}

// The same for a block without a cluster, of whose barriers there are the ring's alone: every consumer uses all stages.
template <int kRegisters = kProducerRegisters, int kStages, class Produce, class Consume>
__device__ __forceinline__ void specialise_warps(WgmmaBarriers<kStages>& ring, const Produce& produce,
                                                 const Consume& consume) {
  specialise_warps<kRegisters>([&] { ring.init(kWgmmaConsumers * kWgmmaWarps); }, produce, consume);
}

}  // namespace warpwright::cuda
