// Matrix product on Hopper's tensor cores (sm_90a): TMA, mbarrier, wgmma, warp specialisation.
//
// A block of three warpgroups stays on its multiprocessor and walks its share of the output's tiles. One thread of the
// first warpgroup, the producer, has TMA bring the next steps of K of both operands to a ring of stages in shared
// memory, as many as fit; the other two, the consumers, multiply. The producer never waits for an epilogue: while a
// tile is finished, the next one's first stages fill.
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

#include "cuda/matmul/gemm_wgmma_epilogue.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/elect.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/tile/turns.cuh"
#include "cuda/tile/wgmma_mainloop.cuh"

namespace warpwright::cuda {

inline constexpr int kWgmmaConsumers = 2, kWgmmaWarps = 4;  // Warpgroups that multiply, and warps of one.
inline constexpr int kWgmmaThreads = ptx::kWarpgroup * (1 + kWgmmaConsumers);
// Of the registers that the launch gives to each thread, the producer's pass to the consumers, who hold a tile.
inline constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
static_assert(kProducerRegisters + kWgmmaConsumers * kConsumerRegisters <= 64 * 1024 / ptx::kWarpgroup);
inline constexpr int kMostSharedBytes = 227 * 1024;  // A block's.

// How a block's shared memory is laid out: stages of both operands' tiles, the warps' buffers, the barriers.
template <int kTileM, int kTileN, bool kPingpong>
struct WgmmaLayout {
  static constexpr int kRows = kPingpong ? kTileM : kTileM / kWgmmaConsumers;  // A consumer's of a tile.
  static constexpr int kMmas = kRows / ptx::kWgmmaM;
  static constexpr int kATileBytes = kTileM * kSpanBytes, kStageBytes = kATileBytes + kTileN * kSpanBytes;
  static constexpr int kBufferBytes = kWgmmaConsumers * kWgmmaWarps * kWarpBufferBytes;
  static constexpr int kTurnsBytes = kWgmmaConsumers * static_cast<int>(sizeof(ptx::Mbarrier));
  static constexpr int kStages =
      (kMostSharedBytes - kBufferBytes - kTurnsBytes) / (kStageBytes + static_cast<int>(sizeof(WgmmaBarriers<1>)));
  struct Barriers {
    WgmmaBarriers<kStages> ring;
    ptx::Mbarrier turns[kWgmmaConsumers];  // Of pingpong.
  };
  static constexpr int kBuffersAt = kStages * kStageBytes, kBarriersAt = kBuffersAt + kBufferBytes;
  static constexpr int kSharedBytes = kBarriersAt + static_cast<int>(sizeof(Barriers));
  static_assert(kRows % ptx::kWgmmaM == 0 && kStages >= 3 && kSharedBytes <= kMostSharedBytes);
  static_assert(kStageBytes % kPatternBytes == 0 && kATileBytes % kPatternBytes == 0);

  static __device__ __forceinline__ Barriers& barriers(unsigned char* shared) {
    return *reinterpret_cast<Barriers*>(shared + kBarriersAt);
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if WARPWRIGHT_SM90A

template <int kTileM, int kTileN, bool kPingpong>
__device__ __forceinline__ void produce(const GemmWgmmaParams& p, unsigned char* shared) {
  using Layout = WgmmaLayout<kTileM, kTileN, kPingpong>;
  auto& ring = Layout::barriers(shared).ring;
  const int span = span_of(p.gemm.dtype);
  const unsigned rank = ptx::cluster_rank();
  WgmmaStage<Layout::kStages> stage;
  for (unsigned place = blockIdx.x / p.walk.cluster; place < p.walk.places(); place += gridDim.x / p.walk.cluster) {
    const WgmmaTile tile = p.walk.template tile<kTileM, kTileN>(place, rank);
    const int rest = tile.matrix / static_cast<int>(p.gemm.batch[2]);
    WgmmaSource from{tile.first_step * span,
                     {rest / static_cast<int>(p.gemm.batch[1]), rest % static_cast<int>(p.gemm.batch[1]),
                      tile.matrix % static_cast<int>(p.gemm.batch[2])},
                     static_cast<int>(rank)};
    for (int step = 0; step < tile.steps; ++step) {
      ptx::mbarrier_wait(&ring.empty[stage.index], stage.parity ^ 1);  // The first round finds the stages empty.
      ptx::Mbarrier* const full = &ring.full[stage.index];
      ptx::mbarrier_arrive_expect(full, Layout::kStageBytes);
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
                                              WgmmaStage<Layout::kStages>& stage, float (&sums)[Layout::kMmas][kSums],
                                              const AllStarted& all_started) {
  const uint64_t a = operand_descriptor(shared + row * kSpanBytes);
  const uint64_t b = operand_descriptor(shared + Layout::kATileBytes);
  auto& ring = Layout::barriers(shared).ring;
  const auto multiply = [&]<class T, bool kAAlongK, bool kBAlongK>() {
    multiply_stages<T, kAAlongK, kBAlongK, Layout::kStageBytes>(sums, a, b, ring, stage, steps, p.walk.cluster,
                                                                all_started);
  };
  const auto with_layouts = [&]<class T>() {
    // Boxes have 64 rows: tiles of other sizes are for operands whose k lies together.
    if constexpr (2 * kSums % kBoxRows == 0) {
      if (!p.b.along_k) {
        return p.a.along_k ? multiply.template operator()<T, true, false>()
                           : multiply.template operator()<T, false, false>();
      }
    }
    return p.a.along_k ? multiply.template operator()<T, true, true>() : multiply.template operator()<T, false, true>();
  };
  switch (p.gemm.dtype) {
    case DType::kFloat16: return with_layouts.template operator()<__half>();
    case DType::kBFloat16: return with_layouts.template operator()<__nv_bfloat16>();
    default: return multiply.template operator()<ptx::Tf32, true, true>();
  }
}

template <int kTileM, int kTileN, bool kPingpong, bool kSwapped>
__device__ __forceinline__ void consume(const GemmWgmmaParams& p, unsigned char* shared, int consumer) {
  using Layout = WgmmaLayout<kTileM, kTileN, kPingpong>;
  const int warp = static_cast<int>(threadIdx.x) / 32 % kWgmmaWarps;
  const int row = kPingpong ? 0 : consumer * Layout::kRows;  // The consumer's first one of a tile.
  const unsigned rank = ptx::cluster_rank();
  unsigned char* const buffer = shared + Layout::kBuffersAt + (consumer * kWgmmaWarps + warp) * kWarpBufferBytes;
  TmaWriter writer(buffer);
  Turns<kWgmmaConsumers> turns(Layout::barriers(shared).turns, consumer);
  WgmmaStage<Layout::kStages> stage;
  float sums[Layout::kMmas][kTileN / 2];
  int others = consumer;  // Tiles that are the other's, before the next one of this consumer's.
  for (unsigned place = blockIdx.x / p.walk.cluster; place < p.walk.places(); place += gridDim.x / p.walk.cluster) {
    const WgmmaTile tile = p.walk.template tile<kTileM, kTileN>(place, rank);
    if constexpr (kPingpong) {
      if (others > 0) {
        others = 0;
        stage.advance(tile.steps);
        continue;
      }
      others = 1;
      turns.wait();
    }
    multiply_tile<Layout>(p, shared, row, tile.steps, stage, sums, [&] {
      if constexpr (kPingpong) turns.pass();
    });
    const int row0 = tile.m0 + row + warp * kWarpRows;
    if constexpr (!kSwapped) {
      if (p.by_tma) {
        p.bare ? writer.store<true>(p, tile, row0, tile.n0, sums) : writer.store<false>(p, tile, row0, tile.n0, sums);
      }
    }
    if constexpr (leaves_any_way(Layout::kMmas * kTileN / 2)) {
      if (!p.by_tma) store_rows<kSwapped>(p, buffer, tile, row0, tile.n0, sums);
    }
  }
  ptx::tma_store_wait_read<0>();  // Shared memory ends with the block.
}

#endif  // WARPWRIGHT_SM90A

// machine code: sm_80: empty; true>: HGMMA, UTMALDG; else: HGMMA, UTMALDG, STSM, UTMASTG
template <int kTileM, int kTileN, bool kPingpong, bool kSwapped>
__global__ void __launch_bounds__(kWgmmaThreads, 1) gemm_wgmma_kernel(const __grid_constant__ GemmWgmmaParams p) {
#if WARPWRIGHT_SM90A
  using Layout = WgmmaLayout<kTileM, kTileN, kPingpong>;
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  if (threadIdx.x == 0) {
    auto& barriers = Layout::barriers(shared);
    Turns<kWgmmaConsumers>::init(barriers.turns);
    barriers.ring.init(p.walk.cluster * kWgmmaWarps * (kPingpong ? 1 : kWgmmaConsumers));
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_sync();
  const int warpgroup = static_cast<int>(threadIdx.x) / ptx::kWarpgroup;
  if (warpgroup == 0) {
    ptx::release_registers<kProducerRegisters>();
    if (threadIdx.x < 32 && ptx::elect_one()) produce<kTileM, kTileN, kPingpong>(p, shared);
  } else {
    ptx::take_registers<kConsumerRegisters>();
    consume<kTileM, kTileN, kPingpong, kSwapped>(p, shared, warpgroup - 1);
  }
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
              WgmmaLayout<kThis.tile_m, kThis.tile_n, kPingpong>::kSharedBytes};
    }
  }
  if constexpr (kShape + 1 < std::size(kWgmmaShapes)) return find_kernel<kPingpong, kShape + 1>(config);
  throw std::logic_error("warpwright: no kernel has this shape");  // wgmma_allows() comes before.
}

WgmmaKernel cooperative_kernel(const WgmmaConfig& config);
WgmmaKernel pingpong_kernel(const WgmmaConfig& config);

}  // namespace warpwright::cuda
