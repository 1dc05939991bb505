// Step 7: one warp loads, the others multiply; four stages go round between them. k must be a multiple of 8.

#include "cuda/ptx/elect.cuh"
#include "hopper.cuh"

namespace warpwright::examples {
namespace {

constexpr int kTileM = 128, kTileN = 128, kStages = 4;
constexpr int kHalves = kTileM / ptx::kWgmmaM;
constexpr int kThreads = 2 * ptx::kWarpgroup;  // The producer's warpgroup and the consumers'.

struct Shared {
  Tile<kTileM> a[kStages];
  Tile<kTileN> b[kStages];
  Mbarrier full[kStages], empty[kStages];
};

__device__ __forceinline__ void produce(const Operands& p, Shared& shared, int m0, int n0) {
  Ring<kStages> ring;
  for (int k0 = 0; k0 < p.matmul.k; k0 += kTileK) {
    Mbarrier* const full = &shared.full[ring.stage];
    ptx::mbarrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);  // The first turn finds the stages empty.
    ptx::mbarrier_arrive_expect(full, sizeof(shared.a[0]) + sizeof(shared.b[0]));
    ptx::tma_load(shared.a[ring.stage].bytes, &p.a, full, {k0, m0});
    ptx::tma_load(shared.b[ring.stage].bytes, &p.b, full, {k0, n0});
    ring.advance();
  }
}

__device__ __forceinline__ void consume(const Operands& p, Shared& shared, int m0, int n0) {
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup;
  Ring<kStages> ring;
  int previous = 0;
  float sums[kHalves][kTileN / 2] = {};
  for (int k0 = 0; k0 < p.matmul.k; k0 += kTileK) {
    ptx::mbarrier_wait(&shared.full[ring.stage], ring.parity);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTileK; k += ptx::kWgmmaK<bf16>) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        ptx::wgmma<bf16, kTileN, true, true>(sums[half], shared.a[ring.stage].operand(half * ptx::kWgmmaM, k),
                                             shared.b[ring.stage].operand(0, k), true);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();  // The step before is done, this one runs on.
    if (k0 > 0 && thread % 32 == 0) ptx::mbarrier_arrive(&shared.empty[previous]);
    previous = ring.stage;
    ring.advance();
  }
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    ptx::wgmma_registers(sums[half]);
    store_sums<kTileN>(p.matmul, sums[half], m0 + half * ptx::kWgmmaM, n0, thread);
  }
}

// machine code: HGMMA.64x128x16.F32.BF16, UTMALDG.2D, SYNCS, ELECT
__global__ void __launch_bounds__(kThreads) warp_specialised_kernel(const __grid_constant__ Operands p) {
  WARPWRIGHT_DYNAMIC_SHARED(bytes);
  Shared& shared = *reinterpret_cast<Shared*>(bytes);
  const int m0 = static_cast<int>(blockIdx.y) * kTileM, n0 = static_cast<int>(blockIdx.x) * kTileN;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(&shared.full[stage], 1);   // The producer, and the bytes that it announces.
      ptx::mbarrier_init(&shared.empty[stage], 4);  // A thread of each consumer warp.
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= ptx::kWarpgroup) {
    consume(p, shared, m0, n0);
  } else if (threadIdx.x < 32 && ptx::elect_one()) {
    produce(p, shared, m0, n0);
  }
}

void warp_specialised(const MatmulParams& p, Stream stream) {
  const Operands operands{map_of(p.a, p.m, p.k, kTileM), map_of(p.b, p.n, p.k, kTileN), p};
  launch("07_warp_specialised", warp_specialised_kernel,
         {grid_of<kTileM, kTileN>(p), dim3(kThreads), stream, static_cast<int>(sizeof(Shared))}, operands);
}

}  // namespace
}  // namespace warpwright::examples

WARPWRIGHT_STEP(matmul_07_warp_specialised, warp_specialised)
