// What Hopper's products do with the stages that a producer fills, whichever it is: two consumers multiply them, tile
// by tile, and take the sums to global memory (sm_90a). gemm_wgmma_kernel.cuh says how the consumers share the tiles.

#pragma once

#include "cuda/matmul/gemm_wgmma_epilogue.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/tile/turns.cuh"
#include "cuda/tile/warp_specialised.cuh"
#include "cuda/tile/wgmma_mainloop.cuh"

namespace warpwright::cuda {

// What the epilogues of a block need of its shared memory: the warps' buffers, and the barriers of pingpong.
struct WgmmaBuffers {
  unsigned char ones[kPatternBytes];  // Eight rows by a span of K, for a kernel that wants the sums of A's rows.
  unsigned char warps[kWgmmaConsumers][kWgmmaWarps][kWarpBufferBytes];
  ptx::Mbarrier turns[kWgmmaConsumers];
};

// The shared memory of a block: stages of both operands' tiles before all else.
template <int kTileM, int kTileN, bool kPingpong>
struct WgmmaLayout : WgmmaShared<(kTileM + kTileN) * kSpanBytes, static_cast<int>(sizeof(WgmmaBuffers))> {
  static constexpr int kRows = kPingpong ? kTileM : kTileM / kWgmmaConsumers;  // A consumer's of a tile.
  static constexpr int kMmas = kRows / ptx::kWgmmaM;
  static constexpr int kATileBytes = kTileM * kSpanBytes;
  static_assert(kRows % ptx::kWgmmaM == 0);
  static_assert(WgmmaLayout::kStageBytes % kPatternBytes == 0 && kATileBytes % kPatternBytes == 0);

  static __device__ __forceinline__ WgmmaBuffers& buffers(unsigned char* shared) {
    return *reinterpret_cast<WgmmaBuffers*>(shared + WgmmaLayout::kBuffersAt);
  }
};

#if WARPWRIGHT_SM90A

// A consumer's share of all of the block's tiles. multiply(tile, row, stage, sums, all_started) computes one tile's
// sums out of the stages, for the warpgroup whose rows of A begin at `row`; what is Params' own of the epilogue, the
// hooks of gemm_wgmma_epilogue.cuh know.
template <int kTileM, int kTileN, bool kPingpong, bool kSwapped, class Params, class Multiply>
__device__ __forceinline__ void consume(const Params& p, unsigned char* shared, int consumer,
                                        const Multiply& multiply) {
  using Layout = WgmmaLayout<kTileM, kTileN, kPingpong>;
  const int warp = static_cast<int>(threadIdx.x) / 32 % kWgmmaWarps;
  const int row = kPingpong ? 0 : consumer * Layout::kRows;  // The consumer's first one of a tile.
  const unsigned rank = ptx::cluster_rank();
  WgmmaBuffers& buffers = Layout::buffers(shared);
  unsigned char* const buffer = buffers.warps[consumer][warp];
  TmaWriter writer(buffer);
  Turns<kWgmmaConsumers> turns(buffers.turns, consumer);
  typename Layout::Stage stage;
  float sums[Layout::kMmas][kTileN / 2];
  int others = consumer;  // Tiles that are the other's, before the next one of this consumer's.
  for (unsigned place = blockIdx.x / p.walk.cluster; place < p.walk.places(); place += gridDim.x / p.walk.cluster) {
    const WgmmaTile tile = tile_at<kTileM, kTileN>(p, place, rank);
    if constexpr (kPingpong) {
      if (others > 0) {
        others = 0;
        stage.advance(tile.steps);
        continue;
      }
      others = 1;
      turns.wait();
    }
    multiply(tile, row, stage, sums, [&] {
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
    measure(p, tile, buffers.warps[consumer], consumer, sums);
  }
  ptx::tma_store_wait_read<0>();  // Shared memory ends with the block.
}

#endif  // WARPWRIGHT_SM90A

// By one thread, before a block's warps part: the barriers of its ring and of its consumers' turns.
template <int kTileM, int kTileN, bool kPingpong>
__device__ __forceinline__ void init_barriers(unsigned char* shared, unsigned cluster) {
  using Layout = WgmmaLayout<kTileM, kTileN, kPingpong>;
  Turns<kWgmmaConsumers>::init(Layout::buffers(shared).turns);
  Layout::ring(shared).init(cluster * kWgmmaWarps * (kPingpong ? 1 : kWgmmaConsumers));
}

}  // namespace warpwright::cuda
