// The forward product and the input's gradient on the tensor cores: cp.async or a gather through registers, then the
// pipeline of tile/mma_tile.cuh, or for float32 of tile/tf32_tile.cuh.
//
// Both are one product of pixels with filters whose inner dimension is (tap, channel). What differs: where a tap leads
// (forward along the dilation, back along a phase's outputs), and which of the weight's dimensions is summed over.

#include <type_traits>

#include "cuda/conv/conv_mma.cuh"
#include "cuda/conv/product_loader.cuh"
#include "cuda/conv/statistics.cuh"
#include "cuda/conv/tiles.cuh"
#include "cuda/launch.h"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

using Large = LargeConvTile;
using Middle = MiddleConvTile;

// The sums of a tile, in shared memory.
template <class T, class Tile, bool kVectors, bool kFiltersAlongK>
__device__ __forceinline__ const float* multiply(const ConvParams& p, const Product<typename Tile::Element>& product,
                                                 const MatrixTile& at) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const int64_t k = static_cast<int64_t>(product.channels) * product.taps[0] * product.taps[1] * product.taps[2];
  using Loader = std::conditional_t<kVectors, ProductLoader<Tile, kFiltersAlongK>, ProductRunLoader<Tile>>;
  Loader loader(product, at.m0, at.n0);
  const auto start = [&](unsigned char* a_tile, unsigned char* b_tile, int64_t) { loader.start(a_tile, b_tile); };
  constexpr bool kAAlongK = kVectors || Tile::kRunsAlongK, kBAlongK = kVectors ? kFiltersAlongK : Tile::kRunsAlongK;
  return conv_sums<T, Tile, kAAlongK, kBAlongK>(p, shared, 0, mma_steps(k), start);
}

// A variant of its own finds the statistics: a branch would cost the others registers.
// machine code: Tf32Tile, true>: HMMA.1688.F32.TF32, LDGSTS.128, STG.128; Tf32Tile, false>: HMMA.1688.F32.TF32, LDGSTS;
// true>: HMMA.16816.F32, LDSM.4, LDGSTS.128, STG.128; else: HMMA.16816.F32, LDSM.4, STG.128
template <class T, bool kMeasures, class Tile, bool kVectors>
__global__ void __launch_bounds__(Tile::kThreads) conv_fprop_mma_kernel(const ConvParams p) {
  const int64_t tiles = tiles_of<Tile::kM, Tile::kN>(p.y_pixels(), p.group_filters());
  const int64_t group = blockIdx.x / tiles, first_filter = group * p.group_filters();
  const auto product = fprop_product<typename Tile::Element>(p, group);
  const MatrixTile at = banded_tile<Tile::kM, Tile::kN>(blockIdx.x % tiles, product.rows, product.filters.rows);
  const float* const staged = multiply<T, Tile, kVectors, true>(p, product, at);
  store_tile<T, Tile>(p, p.y, product, staged, at.m0, at.n0, first_filter);
  if constexpr (kMeasures) {
    const int64_t left = product.rows - at.m0;
    store_statistics<T, Tile>(p, staged, left < Tile::kM ? static_cast<int>(left) : Tile::kM, at.m0 / Tile::kM,
                              first_filter + at.n0, product.filters.rows - at.n0);
  }
}

// machine code: Tf32Tile, true>: HMMA.1688.F32.TF32, LDGSTS.128, STG.128; Tf32Tile, false>: HMMA.1688.F32.TF32, LDGSTS;
// true>: HMMA.16816.F32, LDSM.4, LDGSTS.128, STG.128; else: HMMA.16816.F32, LDSM.4, STG.128
template <class T, class Tile, bool kVectors>
__global__ void __launch_bounds__(Tile::kThreads) conv_dgrad_mma_kernel(const ConvParams p) {
  const int64_t most = tiles_of<Tile::kM, Tile::kN>(most_phase_pixels(p), p.group_channels());
  const int64_t phases = conv_phases(p), group = blockIdx.x / (most * phases), tile = blockIdx.x % most;
  const auto product = dgrad_product<typename Tile::Element>(p, group, phase_at(p, blockIdx.x / most % phases));
  if (tile >= tiles_of<Tile::kM, Tile::kN>(product.rows, product.filters.rows)) return;
  const MatrixTile at = banded_tile<Tile::kM, Tile::kN>(tile, product.rows, product.filters.rows);
  const float* const staged = multiply<T, Tile, kVectors, false>(p, product, at);
  store_tile<T, Tile>(p, p.x, product, staged, at.m0, at.n0, group * p.group_channels());
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

template <template <class, class, bool> class Kernel, class T, class Tile>
void launch_tile(const char* name, const ConvParams& params, bool vectors, int64_t products, int64_t m, int64_t n,
                 Stream stream) {
  const int64_t blocks = products * tiles_of<Tile::kM, Tile::kN>(m, n);
  if (blocks == 0) return;
  const auto kernel = vectors ? Kernel<T, Tile, true>::function : Kernel<T, Tile, false>::function;
  constexpr int kBytes = kConvSharedBytes<Tile>;
  launch(name, kernel, {dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), stream, kBytes}, params);
}

// Of 16-bit elements.
template <template <class, class, bool> class Kernel>
void launch_half(const char* name, const ConvParams& params, const GemmPlan& plan, bool vectors, int64_t products,
                 int64_t m, int64_t n, Stream stream) {
  const auto with = [&](auto tag) {
    using T = decltype(tag);
    const auto launch_one = plan.tile_m == Large::kM ? launch_tile<Kernel, T, Large> : launch_tile<Kernel, T, Middle>;
    launch_one(name, params, vectors, products, m, n, stream);
  };
  params.dtype == DType::kFloat16 ? with(__half{}) : with(__nv_bfloat16{});
}

template <template <class, class, bool> class Kernel>
void launch_product(const char* name, const ConvParams& params, const GemmPlan& plan, bool vectors, int64_t products,
                    int64_t m, int64_t n, Stream stream) {
  if (params.dtype != DType::kFloat32) return launch_half<Kernel>(name, params, plan, vectors, products, m, n, stream);
  launch_tile<Kernel, float, Tf32Tile>(name, params, vectors, products, m, n, stream);
}

template <class T, class Tile, bool kVectors>
struct Fprop {
  static constexpr auto function = conv_fprop_mma_kernel<T, false, Tile, kVectors>;
};
template <class T, class Tile, bool kVectors>
struct MeasuredFprop {
  static constexpr auto function = conv_fprop_mma_kernel<T, true, Tile, kVectors>;
};
template <class T, class Tile, bool kVectors>
struct Dgrad {
  static constexpr auto function = conv_dgrad_mma_kernel<T, Tile, kVectors>;
};

}  // namespace

bool conv_mma_takes(const ConvParams& p) {
  const bool exact = p.dtype == DType::kFloat32 && p.precision == Precision::kIeee;
  return !exact && p.group_channels() * p.group_filters() >= 2 * kChunk;
}

bool conv_in_vectors(const ConvParams& p, GemmRole role) {
  const int count = p.dtype == DType::kFloat32 ? Tf32Tile::kVector : kChunk;
  const auto y = [&] { return in_vectors(p.y, p.group_filters(), count); };
  const auto x = [&] { return in_vectors(p.x, p.group_channels(), count); };
  const auto w = [&] { return in_vectors(p.w, p.group_channels(), count); };
  switch (role) {
    case GemmRole::kForward: return x() && w();
    case GemmRole::kInputGradient: return y() && w();
    default: return y() && x();
  }
}

void conv_fprop_mma(const ConvParams& p, const GemmPlan& plan, Stream stream) {
  const bool vectors = conv_in_vectors(p, GemmRole::kForward);
  const int64_t m = p.y_pixels(), n = p.group_filters();
  if (p.mean_partials != nullptr) {
    return launch_half<MeasuredFprop>("conv_fprop_measured_mma", p, plan, vectors, p.groups, m, n, stream);
  }
  launch_product<Fprop>("conv_fprop_mma", p, plan, vectors, p.groups, m, n, stream);
}

void conv_dgrad_mma(const ConvParams& p, const GemmPlan& plan, Stream stream) {
  const bool vectors = conv_in_vectors(p, GemmRole::kInputGradient);
  const int64_t products = p.groups * conv_phases(p), m = most_phase_pixels(p), n = p.group_channels();
  launch_product<Dgrad>("conv_dgrad_mma", p, plan, vectors, products, m, n, stream);
}

}  // namespace warpwright::cuda
