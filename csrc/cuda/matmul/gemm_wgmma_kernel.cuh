// Matrix product on Hopper's tensor cores (sm_90a): TMA, mbarrier, wgmma, warp specialisation.
//
// A block stays on its multiprocessor and walks its share of the output's tiles. Its producer has TMA bring the next
// steps of K of both operands to a ring of stages in shared memory, as many as fit; its two consumers multiply.
//
//   cooperative  The consumers share a tile: half of its rows each. The tensor cores rest during its epilogue, but for
//                the head start that the filled stages give.
//   pingpong     The consumers take turns: each computes every other tile of the block's, and one's epilogue runs under
//                the other's products. A consumer's turn is over when it has started its tile's last products. Before,
//                the other must not look at its first stages: full barriers know the parity of a phase alone, and that
//                of the phase before last is the same.
//
// Two blocks of a cluster take tiles below each other: each loads half of the columns' operand for both, so that it is
// read once from the second-level cache where it was read twice.
//
// What does not change how registers and shared memory are laid out is decided at run time, by one branch for each
// tile: the operands' dtype and layouts, the epilogue, the order of tiles, splits of K, clusters. So a kernel is a
// tile's shape and a schedule.

#pragma once

#include <iterator>
#include <stdexcept>

#include "cuda/matmul/gemm_wgmma_consumer.cuh"

namespace warpwright::cuda {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if WARPWRIGHT_SM90A

template <int kTileM, int kTileN, bool kPingpong>
__device__ __forceinline__ void produce(const GemmWgmmaParams& p, unsigned char* shared, bool leader) {
  if (!leader) return;
  using Layout = WgmmaLayout<kTileM, kTileN, kPingpong>;
  auto& ring = Layout::ring(shared);
  const int span = span_of(p.gemm.dtype);
  const unsigned rank = ptx::cluster_rank();
  typename Layout::Stage stage;
  for (unsigned place = blockIdx.x / p.walk.cluster; place < p.walk.places(); place += gridDim.x / p.walk.cluster) {
    const WgmmaTile tile = p.walk.template tile<kTileM, kTileN>(place, rank);
    const int rest = tile.matrix / static_cast<int>(p.gemm.batch[2]);
    WgmmaSource from{tile.first_step * span,
                     {rest / static_cast<int>(p.gemm.batch[1]), rest % static_cast<int>(p.gemm.batch[1]),
                      tile.matrix % static_cast<int>(p.gemm.batch[2])},
                     static_cast<int>(rank)};
    for (int step = 0; step < tile.steps; ++step) {
      ptx::Mbarrier* const full = open_stage(ring, stage, Layout::kStageBytes);
      unsigned char* const a_tile = shared + stage.index * Layout::kStageBytes;
      load_operand<kTileM>(a_tile, p.a, full, tile.m0, from, p.batched);
      load_operand<kTileN>(a_tile + Layout::kATileBytes, p.b, full, tile.n0, from, p.batched);
      from.k += span;
      stage.advance();
    }
  }
  // The block stays until everybody is done with what it brought to others, and has told it.
  for (int i = 0; i < Layout::kStages; ++i) {
    ptx::mbarrier_wait(&ring.empty[stage.index], stage.parity ^ 1);
    stage.advance();
  }
}

// The products of a tile, by the warpgroup whose rows of A begin at `row`.
template <class Layout, int kSums, class AllStarted>
__device__ __forceinline__ void multiply_tile(const GemmWgmmaParams& p, unsigned char* shared, int row, int steps,
                                              typename Layout::Stage& stage, float (&sums)[Layout::kMmas][kSums],
                                              const AllStarted& all_started) {
  const uint64_t a = operand_descriptor(shared + row * kSpanBytes);
  const uint64_t b = operand_descriptor(shared + Layout::kATileBytes);
  const auto multiply = [&]<class T, bool kAAlongK, bool kBAlongK>() {
    multiply_stages<T, kAAlongK, kBAlongK, Layout::kStageBytes>(sums, a, b, Layout::ring(shared), stage, steps,
                                                                p.walk.cluster, all_started);
  };
  const auto multiply_halves = [&]<class T>() {
    with_layouts<2 * kSums>(p.a.along_k, p.b.along_k, [&]<bool kAAlongK, bool kBAlongK>() {
      multiply.template operator()<T, kAAlongK, kBAlongK>();
    });
  };
  switch (p.gemm.dtype) {
    case DType::kFloat16: return multiply_halves.template operator()<__half>();
    case DType::kBFloat16: return multiply_halves.template operator()<__nv_bfloat16>();
    default: return multiply.template operator()<ptx::Tf32, true, true>();
  }
}

#endif  // WARPWRIGHT_SM90A

// machine code: sm_80: empty; true>: HGMMA, UTMALDG; else: HGMMA, UTMALDG, STSM, UTMASTG
template <int kTileM, int kTileN, bool kPingpong, bool kSwapped>
__global__ void __launch_bounds__(kWgmmaThreads, 1) gemm_wgmma_kernel(const __grid_constant__ GemmWgmmaParams p) {
#if WARPWRIGHT_SM90A
  using Layout = WgmmaLayout<kTileM, kTileN, kPingpong>;
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const auto multiply = [&](const WgmmaTile& tile, int row, auto& stage, auto& sums, const auto& all_started) {
    multiply_tile<Layout>(p, shared, row, tile.steps, stage, sums, all_started);
  };
  specialise_warps([&] { init_barriers<kTileM, kTileN, kPingpong>(shared, p.walk.cluster); },
                   [&](bool leader) { produce<kTileM, kTileN, kPingpong>(p, shared, leader); },
                   [&](int consumer) { consume<kTileM, kTileN, kPingpong, kSwapped>(p, shared, consumer, multiply); });
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

struct WgmmaKernel {
  void (*kernel)(GemmWgmmaParams);
  int shared_bytes;
};

// The kernel of a configuration with this schedule.
template <bool kPingpong, size_t kShape = 0>
WgmmaKernel find_kernel(const WgmmaConfig& config) {
  constexpr WgmmaShape kThis = kWgmmaShapes[kShape];
  if constexpr (kThis.pingpong == kPingpong) {
    if (kThis.tile_m == config.tile_m && kThis.tile_n == config.tile_n && kThis.swapped == config.swapped) {
      return {gemm_wgmma_kernel<kThis.tile_m, kThis.tile_n, kPingpong, kThis.swapped>,
              WgmmaLayout<kThis.tile_m, kThis.tile_n, kPingpong>::kBytes};
    }
  }
  if constexpr (kShape + 1 < std::size(kWgmmaShapes)) return find_kernel<kPingpong, kShape + 1>(config);
  throw std::logic_error("warpwright: no kernel has this shape");  // wgmma_allows() comes before.
}

WgmmaKernel cooperative_kernel(const WgmmaConfig& config);
WgmmaKernel pingpong_kernel(const WgmmaConfig& config);

}  // namespace warpwright::cuda
