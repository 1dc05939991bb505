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

// The sums of A's rows, which are y's over the pixels: products with ones. Of the warps that share some rows each takes
// 16 of them. Of 16-bit elements.
template <class T, class Tile>
class RowSums {
  static constexpr int kCount = Tile::kWarpM / kMmaM;
  static_assert(kCount == Tile::kWarpsN, "each warp has rows of its own to add up");

 public:
  __device__ __forceinline__ explicit RowSums(bool wanted) : mine_(wanted ? warp() % Tile::kWarpsN : kCount) {}

  __device__ __forceinline__ void operator()(const uint32_t (&a)[kCount][4]) {
    const uint32_t ones[2] = {pack_pair<T>(1.0f, 1.0f), pack_pair<T>(1.0f, 1.0f)};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i == mine_) ptx::mma_m16n8k16<T>(sums_, a[i], ones);
    }
  }

  // Calls store(row, sum) for the warp's rows of the tile: the eight columns are alike.
  template <class Store>
  __device__ __forceinline__ void each(const Store& store) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (mine_ == kCount || lane % 4 != 0) return;
    const int row = warp() / Tile::kWarpsN * Tile::kWarpM + mine_ * kMmaM + lane / 4;
    store(row, sums_[0]);
    store(row + 8, sums_[2]);
  }

 private:
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }

  int mine_;
  float sums_[4] = {};
};

// conv_sums has none of TF32, whose rows are rounded.
template <class T>
class RowSums<T, Tf32Tile> : public NothingMore {
 public:
  __device__ __forceinline__ explicit RowSums(bool) {}
  template <class Store>
  __device__ __forceinline__ void each(const Store&) const {}
};

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
  RowSums<T, Tile> row_sums(p.grad_bias != nullptr && at.n0 == 0);
  const float* const staged = conv_sums<T, Tile, kAlongK, kAlongK>(p, shared, first, last, start, row_sums);
  row_sums.each([&](int row, float sum) {
    if (at.m0 + row >= filters) return;
    const int64_t filter = group * filters + at.m0 + row;
    if (params.partials != nullptr) {
      params.bias_partials()[split * p.filters + filter] = sum;
    } else {
      store_bias_grad<T>(p, filter, sum);
    }
  });
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

template <class T, class Tile>
void launch_wgrad(const WgradParams& params, Stream stream) {
  const ConvParams& p = params.conv;
  const bool vectors = conv_in_vectors(p, GemmRole::kWeightGradient);
  const int64_t tiles = tiles_of<Tile::kM, Tile::kN>(p.group_filters(), p.group_channels() * p.taps());
  const int64_t blocks = p.groups * tiles * params.splits;
  if (blocks == 0) return;
  const auto kernel = vectors ? conv_wgrad_mma_kernel<T, Tile, true> : conv_wgrad_mma_kernel<T, Tile, false>;
  constexpr int kBytes = kConvSharedBytes<Tile>;
  launch("conv_wgrad_mma", kernel, {dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), stream, kBytes}, params);
}

template <class T>
void launch_half(const WgradParams& params, int tile_m, Stream stream) {
  tile_m == Large::kM ? launch_wgrad<T, Large>(params, stream) : launch_wgrad<T, Middle>(params, stream);
}

}  // namespace

void conv_wgrad_mma(const ConvParams& p, const GemmPlan& plan, float* partials, Stream stream) {
  const WgradParams params{p, plan.splits > 1 ? partials : nullptr, plan.splits};
  switch (p.dtype) {
    case DType::kFloat32: launch_wgrad<float, Tf32Tile>(params, stream); break;
    case DType::kFloat16: launch_half<__half>(params, plan.tile_m, stream); break;
    default: launch_half<__nv_bfloat16>(params, plan.tile_m, stream);
  }
  if (plan.splits > 1) reduce_wgrad(params, stream);
}

}  // namespace warpwright::cuda
