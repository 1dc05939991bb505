// Step 10: the sums leave through shared memory and TMA while the next tile is multiplied. k and n: multiples of 8.

#include "cuda/device.h"
#include "cuda/ptx/elect.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/tile/scheduler.cuh"
#include "store_boxes.cuh"

namespace warpwright::examples {
namespace {

using cuda::banded_tile, cuda::tiles_of;

constexpr int kTileM = 128, kTileN = 256, kStages = 4;
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

__device__ __forceinline__ void produce(const Operands& p, Shared& shared) {
  Ring<kStages> ring;
  for (int64_t i = blockIdx.x; i < tiles_of<kTileM, kTileN>(p.matmul.m, p.matmul.n); i += gridDim.x) {
    const auto tile = banded_tile<kTileM, kTileN>(i, p.matmul.m, p.matmul.n);
    const int m0 = static_cast<int>(tile.m0), n0 = static_cast<int>(tile.n0);
    for (int k0 = 0; k0 < p.matmul.k; k0 += kTileK) {
      Mbarrier* const full = &shared.full[ring.stage];
      ptx::mbarrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
      ptx::mbarrier_arrive_expect(full, sizeof(shared.a[0]) + sizeof(shared.b[0]));
      ptx::tma_load(shared.a[ring.stage].bytes, &p.a, full, {k0, m0});
      ptx::tma_load(shared.b[ring.stage].bytes, &p.b, full, {k0, n0});
      ring.advance();
    }
  }
}

__device__ __forceinline__ void consume(const Params& params, Shared& shared) {
  const Operands& p = params.operands;
  const int consumer = static_cast<int>(threadIdx.x) / ptx::kWarpgroup - 1, row = consumer * ptx::kWgmmaM;
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup;
  Ring<kStages> ring;
  float sums[kTileN / 2];
  for (int64_t i = blockIdx.x; i < tiles_of<kTileM, kTileN>(p.matmul.m, p.matmul.n); i += gridDim.x) {
    const auto tile = banded_tile<kTileM, kTileN>(i, p.matmul.m, p.matmul.n);
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
      if (k0 > 0 && thread % 32 == 0) ptx::mbarrier_arrive(&shared.empty[previous]);
      previous = ring.stage;
      ring.advance();
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_registers(sums);
    if (thread % 32 == 0) ptx::mbarrier_arrive(&shared.empty[previous]);
    store_boxes<kTileN>(&params.c, shared.c[consumer], sums, static_cast<int>(tile.m0) + row, static_cast<int>(tile.n0),
                        consumer, thread);
  }
  ptx::tma_store_wait_read<0>();  // Shared memory ends with the block.
}

// machine code: HGMMA.64x256x16.F32.BF16, UTMALDG.2D, STSM.4, UTMASTG.2D
__global__ void __launch_bounds__(kThreads) tma_store_kernel(const __grid_constant__ Params p) {
  WARPWRIGHT_DYNAMIC_SHARED(bytes);
  Shared& shared = *reinterpret_cast<Shared*>(bytes);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(&shared.full[stage], 1);
      ptx::mbarrier_init(&shared.empty[stage], 4 * kConsumers);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x < ptx::kWarpgroup) {
    ptx::release_registers<kProducerRegisters>();
    if (threadIdx.x < 32 && ptx::elect_one()) produce(p.operands, shared);
  } else {
    ptx::take_registers<kConsumerRegisters>();
    consume(p, shared);
  }
}

void tma_store(const MatmulParams& p, Stream stream) {
  const Params params{{map_of(p.a, p.m, p.k, kTileM), map_of(p.b, p.n, p.k, kTileN), p},
                      map_of(p.c, p.m, p.n, ptx::kWgmmaM)};
  const int64_t blocks = std::min<int64_t>(tiles_of<kTileM, kTileN>(p.m, p.n), cuda::current_device().multiprocessors);
  launch("10_tma_store", tma_store_kernel,
         {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream, static_cast<int>(sizeof(Shared))}, params);
}

}  // namespace
}  // namespace warpwright::examples

WARPWRIGHT_STEP(matmul_10_tma_store, tma_store)
