// The weight's gradient on the tensor cores: filters by (tap, channel), summed over the pixels of y.
//
// The pixels are cut into parts where the tiles alone are few: wgrad_parts.h.

#include <algorithm>
#include <type_traits>

#include "cuda/conv/conv_mma.cuh"
#include "cuda/conv/epilogue.cuh"
#include "cuda/conv/tiles.cuh"
#include "cuda/conv/wgrad_loader.cuh"
#include "cuda/conv/wgrad_parts.h"
#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

using Large = LargeConvTile;
using Middle = MiddleConvTile;

// machine code: Tf32Tile, true>: HMMA.1688.F32.TF32, LDGSTS.128; Tf32Tile, false>: HMMA.1688.F32.TF32, LDGSTS;
// true>: HMMA.16816.F32, LDSM.4, LDGSTS.128; else: HMMA.16816.F32, LDSM.4
template <class T, class Tile, bool kVectors>
__global__ void __launch_bounds__(Tile::kThreads) conv_wgrad_mma_kernel(const WgradParams params) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const ConvParams& p = params.conv;
  const int64_t filters = p.group_filters(), columns = p.group_channels() * p.taps(), pixels = p.y_pixels();
  const int64_t tiles = tiles_of<Tile::kM, Tile::kN>(filters, columns);
  const int64_t split = blockIdx.x / (tiles * p.groups), group = blockIdx.x / tiles % p.groups;
  const MatrixTile at = banded_tile<Tile::kM, Tile::kN>(blockIdx.x % tiles, filters, columns);
  const int64_t steps = mma_steps(pixels);
  const int64_t first = steps * split / params.splits, last = steps * (split + 1) / params.splits;
  using Loader = std::conditional_t<kVectors, WgradLoader<Tile>, WgradRunLoader<Tile>>;
  Loader loader(p, Part{group, at.m0, at.n0, first * kTileK, pixels});
  const auto start = [&](unsigned char* a_tile, unsigned char* b_tile, int64_t) { loader.start(a_tile, b_tile); };
  constexpr bool kAlongK = !kVectors && Tile::kRunsAlongK;
  const float* const staged = conv_sums<T, Tile, kAlongK, kAlongK>(p, shared, first, last, start);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kM * Tile::kN; i += Tile::kThreads) {
    const int64_t row = at.m0 + i / Tile::kN, column = at.n0 + i % Tile::kN;
    if (row >= filters || column >= columns) continue;
    const float sum = staged[i / Tile::kN * Tile::kStagedColumns + i % Tile::kN];
    const int64_t filter = group * filters + row;
    if (params.partials != nullptr) {
      params.partials[(split * p.filters + filter) * columns + column] = sum;
    } else {
      store_weight<T>(p, filter, column, sum);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

// Calls f with the tile that a convolution takes.
template <class F>
auto with_tile(const ConvParams& p, const F& f) {
  if (p.dtype == DType::kFloat32) return f(Tf32Tile{});
  const bool large = p.group_filters() > Middle::kM && p.group_channels() * p.taps() > Middle::kN;
  return large ? f(Large{}) : f(Middle{});
}

template <class Tile>
int64_t wgrad_tiles(const ConvParams& p) {
  return p.groups * tiles_of<Tile::kM, Tile::kN>(p.group_filters(), p.group_channels() * p.taps());
}

template <class T, class Tile>
void launch_wgrad(const WgradParams& params, Stream stream) {
  const ConvParams& p = params.conv;
  const bool vectors =
      in_vectors(p.y, p.group_filters(), Tile::kVector) && in_vectors(p.x, p.group_channels(), Tile::kVector);
  const int64_t blocks = wgrad_tiles<Tile>(p) * params.splits;
  if (blocks == 0) return;
  const auto kernel = vectors ? conv_wgrad_mma_kernel<T, Tile, true> : conv_wgrad_mma_kernel<T, Tile, false>;
  constexpr int kBytes = kConvSharedBytes<Tile>;
  launch("conv_wgrad_mma", kernel, {dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), stream, kBytes}, params);
}

}  // namespace

int conv_wgrad_mma_splits(const ConvParams& p) {
  const int64_t tiles = with_tile(p, [&](auto tile) { return wgrad_tiles<decltype(tile)>(p); });
  if (tiles == 0) return 1;
  // Some 256 blocks, and no part shorter than kLeastSteps, or the partials cost what the parts save.
  constexpr int64_t kBlocks = 256, kLeastSteps = 16;
  const int64_t steps = (p.y_pixels() + kTileK - 1) / kTileK;
  return allowed_splits(p, std::min(kBlocks / tiles, steps / kLeastSteps));
}

void conv_wgrad_mma(const ConvParams& p, float* partials, int splits, Stream stream) {
  const WgradParams params{p, splits > 1 ? partials : nullptr, splits};
  with_tile(p, [&](auto tile) {
    using Tile = decltype(tile);
    if constexpr (sizeof(typename Tile::Element) == sizeof(float)) {
      launch_wgrad<float, Tile>(params, stream);
    } else if (p.dtype == DType::kFloat16) {
      launch_wgrad<__half, Tile>(params, stream);
    } else {
      launch_wgrad<__nv_bfloat16, Tile>(params, stream);
    }
  });
  if (splits > 1) reduce_wgrad(params, stream);
}

}  // namespace warpwright::cuda
