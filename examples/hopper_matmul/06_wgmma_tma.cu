// Step 6: TMA copies, wgmma multiplies out of shared memory; one stage. k must be a multiple of 8.

#include "hopper.cuh"

namespace warpwright::examples {
namespace {

constexpr int kTileM = 128, kTileN = 128;
constexpr int kHalves = kTileM / ptx::kWgmmaM;  // A product has 64 rows.

struct Shared {
  Tile<kTileM> a;
  Tile<kTileN> b;
  Mbarrier full;
};

// machine code: HGMMA.64x128x16.F32.BF16, UTMALDG.2D, SYNCS
__global__ void __launch_bounds__(ptx::kWarpgroup) wgmma_tma_kernel(const __grid_constant__ Operands p) {
  WARPWRIGHT_DYNAMIC_SHARED(bytes);
  Shared& shared = *reinterpret_cast<Shared*>(bytes);
  const int m0 = static_cast<int>(blockIdx.y) * kTileM, n0 = static_cast<int>(blockIdx.x) * kTileN;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&shared.full, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  float sums[kHalves][kTileN / 2] = {};
  unsigned parity = 0;
  for (int k0 = 0; k0 < p.matmul.k; k0 += kTileK) {
    if (threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect(&shared.full, sizeof(shared.a) + sizeof(shared.b));
      ptx::tma_load(shared.a.bytes, &p.a, &shared.full, {k0, m0});
      ptx::tma_load(shared.b.bytes, &p.b, &shared.full, {k0, n0});
    }
    ptx::mbarrier_wait(&shared.full, parity);
    parity ^= 1;
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTileK; k += ptx::kWgmmaK<bf16>) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        ptx::wgmma<bf16, kTileN, true, true>(sums[half], shared.a.operand(half * ptx::kWgmmaM, k),
                                             shared.b.operand(0, k), true);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    __syncthreads();  // All four warps' products are done with the tiles.
  }
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    ptx::wgmma_registers(sums[half]);
    store_sums<kTileN>(p.matmul, sums[half], m0 + half * ptx::kWgmmaM, n0, static_cast<int>(threadIdx.x));
  }
}

void wgmma_tma(const MatmulParams& p, Stream stream) {
  const Operands operands{map_of(p.a, p.m, p.k, kTileM), map_of(p.b, p.n, p.k, kTileN), p};
  launch("06_wgmma_tma", wgmma_tma_kernel,
         {grid_of<kTileM, kTileN>(p), dim3(ptx::kWarpgroup), stream, static_cast<int>(sizeof(Shared))}, operands);
}

}  // namespace
}  // namespace warpwright::examples

WARPWRIGHT_STEP(matmul_06_wgmma_tma, wgmma_tma)
