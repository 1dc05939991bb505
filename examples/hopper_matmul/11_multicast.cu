// Step 11: two blocks with the same columns of C load half of B's tile each, for both. k and n: multiples of 8.

#include "cuda/device.h"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/elect.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/tile/scheduler.cuh"
#include "store_boxes.cuh"

namespace warpwright::examples {
namespace {

using cuda::banded_tile, cuda::tiles_of;

constexpr int kTileM = 128, kTileN = 256, kStages = 4;
constexpr int kCluster = 2;                      // Blocks, one below the other.
constexpr int kPartN = kTileN / kCluster;        // Rows of B that a block loads for the cluster.
constexpr uint16_t kBoth = (1 << kCluster) - 1;  // The blocks that get them.
constexpr int kConsumers = kTileM / ptx::kWgmmaM;
constexpr int kThreads = (1 + kConsumers) * ptx::kWarpgroup;
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

struct Params {
  Operands operands;
  TensorMap c;
};

struct Shared {
  Tile<kTileM> a[kStages];
  Tile<kTileN> b[kStages];
  Tile<ptx::kWgmmaM> c[kConsumers][kBuffers];
  Mbarrier full[kStages], empty[kStages];
};
static_assert(sizeof(Shared) <= 227 * 1024, "a block's shared memory");

// Pairs of tiles, one below the other. Where the lower one lies past the last row, TMA reads zeros and writes nothing.
WARPWRIGHT_HOST_DEVICE int64_t pairs(const MatmulParams& p) { return tiles_of<kCluster * kTileM, kTileN>(p.m, p.n); }

__device__ __forceinline__ void produce(const Operands& p, Shared& shared) {
  Ring<kStages> ring;
  const int rank = static_cast<int>(ptx::cluster_rank());
  for (int64_t i = blockIdx.x / kCluster; i < pairs(p.matmul); i += gridDim.x / kCluster) {
    const auto pair = banded_tile<kCluster * kTileM, kTileN>(i, p.matmul.m, p.matmul.n);
    const int m0 = static_cast<int>(pair.m0) + rank * kTileM, n0 = static_cast<int>(pair.n0) + rank * kPartN;
    for (int k0 = 0; k0 < p.matmul.k; k0 += kTileK) {
      Mbarrier* const full = &shared.full[ring.stage];
      ptx::mbarrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);  // Both blocks' consumers are done with it.
      ptx::mbarrier_arrive_expect(full, sizeof(shared.a[0]) + sizeof(shared.b[0]));
      ptx::tma_load(shared.a[ring.stage].bytes, &p.a, full, {k0, m0});
      ptx::tma_load_multicast(shared.b[ring.stage].bytes + rank * kPartN * kRowBytes, &p.b, full, {k0, n0}, kBoth);
      ring.advance();
    }
  }
}

__device__ __forceinline__ void consume(const Params& params, Shared& shared) {
  const Operands& p = params.operands;
  const int consumer = static_cast<int>(threadIdx.x) / ptx::kWarpgroup - 1, row = consumer * ptx::kWgmmaM;
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup;
  const unsigned lane = threadIdx.x % 32;
  Ring<kStages> ring;
  float sums[kTileN / 2];
  for (int64_t i = blockIdx.x / kCluster; i < pairs(p.matmul); i += gridDim.x / kCluster) {
    const auto pair = banded_tile<kCluster * kTileM, kTileN>(i, p.matmul.m, p.matmul.n);
    const int m0 = static_cast<int>(pair.m0) + static_cast<int>(ptx::cluster_rank()) * kTileM;
    int previous = 0;
    for (int k0 = 0; k0 < p.matmul.k; k0 += kTileK) {
      ptx::mbarrier_wait(&shared.full[ring.stage], ring.parity);
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < kTileK; k += ptx::kWgmmaK<bf16>) {
        ptx::wgmma<bf16, kTileN, true, true>(sums, shared.a[ring.stage].operand(row, k),
                                             shared.b[ring.stage].operand(0, k), k0 + k > 0);
      }
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();
      if (k0 > 0 && lane < kCluster) ptx::mbarrier_arrive_remote(&shared.empty[previous], lane);
      previous = ring.stage;
      ring.advance();
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_registers(sums);
    if (lane < kCluster) ptx::mbarrier_arrive_remote(&shared.empty[previous], lane);
    store_boxes<kTileN>(&params.c, shared.c[consumer], sums, m0 + row, static_cast<int>(pair.n0), consumer, thread);
  }
  ptx::tma_store_wait_read<0>();  // Shared memory ends with the block.
}

// machine code: HGMMA.64x256x16.F32.BF16, UTMALDG.2D.MULTICAST, UCGABAR_ARV
__global__ void __launch_bounds__(kThreads) multicast_kernel(const __grid_constant__ Params p) {
  WARPWRIGHT_DYNAMIC_SHARED(bytes);
  Shared& shared = *reinterpret_cast<Shared*>(bytes);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(&shared.full[stage], 1);
      ptx::mbarrier_init(&shared.empty[stage], 4 * kConsumers * kCluster);
    }
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_sync();  // The other block's barriers are there, too.
  if (threadIdx.x < ptx::kWarpgroup) {
    ptx::release_registers<kProducerRegisters>();
    if (threadIdx.x < 32 && ptx::elect_one()) produce(p.operands, shared);
  } else {
    ptx::take_registers<kConsumerRegisters>();
    consume(p, shared);
  }
  __syncwarp();
  ptx::cluster_sync();  // No block ends while the other one still loads into it, or arrives at its barriers.
}

void multicast(const MatmulParams& p, Stream stream) {
  const Params params{{map_of(p.a, p.m, p.k, kTileM), map_of(p.b, p.n, p.k, kPartN), p},
                      map_of(p.c, p.m, p.n, ptx::kWgmmaM)};
  const int64_t clusters = std::min<int64_t>(pairs(p), cuda::current_device().multiprocessors / kCluster);
  launch("11_multicast", multicast_kernel,
         {dim3(static_cast<unsigned>(clusters * kCluster)), dim3(kThreads), stream, static_cast<int>(sizeof(Shared)),
          kCluster},
         params);
}

}  // namespace
}  // namespace warpwright::examples

WARPWRIGHT_STEP(matmul_11_multicast, multicast)
