// Step 8: a tile of 128 x 256 for two consumer warpgroups, who take the producer's registers. k: a multiple of 8.

#include "cuda/ptx/elect.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "hopper.cuh"

namespace warpwright::examples {
namespace {

constexpr int kTileM = 128, kTileN = 256, kStages = 4;
constexpr int kConsumers = kTileM / ptx::kWgmmaM;  // Warpgroups; each has 64 of the tile's rows.
constexpr int kThreads = (1 + kConsumers) * ptx::kWarpgroup;
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
static_assert((kProducerRegisters + kConsumers * kConsumerRegisters) * ptx::kWarpgroup <= 64 * 1024, "the registers");

struct Shared {
  Tile<kTileM> a[kStages];
  Tile<kTileN> b[kStages];
  Mbarrier full[kStages], empty[kStages];
};
static_assert(sizeof(Shared) <= 227 * 1024, "a block's shared memory");

__device__ __forceinline__ void produce(const Operands& p, Shared& shared, int m0, int n0) {
  Ring<kStages> ring;
  for (int k0 = 0; k0 < p.matmul.k; k0 += kTileK) {
    Mbarrier* const full = &shared.full[ring.stage];
    ptx::mbarrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
    ptx::mbarrier_arrive_expect(full, sizeof(shared.a[0]) + sizeof(shared.b[0]));
    ptx::tma_load(shared.a[ring.stage].bytes, &p.a, full, {k0, m0});
    ptx::tma_load(shared.b[ring.stage].bytes, &p.b, full, {k0, n0});
    ring.advance();
  }
}

__device__ __forceinline__ void consume(const Operands& p, Shared& shared, int m0, int n0) {
  const int row = (static_cast<int>(threadIdx.x) / ptx::kWarpgroup - 1) * ptx::kWgmmaM;  // Of the tile.
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup;
  Ring<kStages> ring;
  int previous = 0;
  float sums[kTileN / 2];
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
  store_sums<kTileN>(p.matmul, sums, m0 + row, n0, thread);
}

// machine code: HGMMA.64x256x16.F32.BF16, UTMALDG.2D, 2 x USETMAXREG
__global__ void __launch_bounds__(kThreads) two_consumers_kernel(const __grid_constant__ Operands p) {
  WARPWRIGHT_DYNAMIC_SHARED(bytes);
  Shared& shared = *reinterpret_cast<Shared*>(bytes);
  const int m0 = static_cast<int>(blockIdx.y) * kTileM, n0 = static_cast<int>(blockIdx.x) * kTileN;
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
    if (threadIdx.x < 32 && ptx::elect_one()) produce(p, shared, m0, n0);
  } else {
    ptx::take_registers<kConsumerRegisters>();
    consume(p, shared, m0, n0);
  }
}

void two_consumers(const MatmulParams& p, Stream stream) {
  const Operands operands{map_of(p.a, p.m, p.k, kTileM), map_of(p.b, p.n, p.k, kTileN), p};
  launch("08_two_consumers", two_consumers_kernel,
         {grid_of<kTileM, kTileN>(p), dim3(kThreads), stream, static_cast<int>(sizeof(Shared))}, operands);
}

}  // namespace
}  // namespace warpwright::examples

WARPWRIGHT_STEP(matmul_08_two_consumers, two_consumers)
