// The convolution of 8-bit tensors on the tensor cores: conv_mma's product of pixels with filters, whose inner
// dimension is (tap, channel), by the tiles of tile/byte_tile.cuh. Where channels lie together in sixteens cp.async
// copies them, else a thread gathers bytes, so that a filter of 3 channels leaves no holes.

#include <type_traits>

#include "cuda/conv/product_loader.cuh"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/scaled_conv/epilogue.cuh"
#include "cuda/scaled_conv/scaled_conv_mma.cuh"
#include "cuda/tile/byte_tile.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

using Large = LargeByteTile;
using Middle = ByteTile<64, 64, 2, 2, 4>;

// Of a multiprocessor: for a second large tile the compiler would spill.
template <class Tile>
inline constexpr int kBlocks = std::is_same_v<Tile, Large> ? 1 : 3;

struct ScaledConvMmaParams {
  ScaledConvParams scaled;
  Decodings formats;
};

// machine code: true, int>: IMMA, LDSM.4, LDGSTS.128, STG.128; false, int>: IMMA, LDSM.4, STG.128;
// true, float>: HMMA.16816.F32, LDSM.4, LDGSTS.128, STG.128; else: HMMA.16816.F32, LDSM.4, STG.128
template <class Tile, bool kVectors, class S>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks<Tile>)
    scaled_conv_mma_kernel(const __grid_constant__ ScaledConvMmaParams params) {
  const ConvParams& p = params.scaled.conv;
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const int64_t tiles = tiles_of<Tile::kM, Tile::kN>(p.y_pixels(), p.group_filters());
  const int64_t group = blockIdx.x / tiles, first_filter = group * p.group_filters();
  const auto product = fprop_product<typename Tile::Element>(p, group);
  const MatrixTile at = banded_tile<Tile::kM, Tile::kN>(blockIdx.x % tiles, product.rows, product.filters.rows);
  std::conditional_t<kVectors, ProductLoader<Tile, true>, ProductRunLoader<Tile>> loader(product, at.m0, at.n0);
  const auto start = [&](unsigned char* a_tile, unsigned char* b_tile, int64_t) { loader.start(a_tile, b_tile); };
  const auto to_totals = [&](auto& sums, auto& totals, int, int, int64_t) {
    promote_bytes(params.formats, sums, totals);
  };
  const int64_t k = p.group_channels() * p.taps();
  const float* const staged =
      byte_sums<Tile, S>(shared, (k + Tile::kInner - 1) / Tile::kInner, params.formats, start, to_totals);
  const auto store = [&](const ConvPlace& place, int64_t filter, const float* sums, int count) {
    store_scaled<kStoredColumns>(params.scaled, place, first_filter + filter, sums, count);
  };
  for_each_piece<Tile>(p.y, product, staged, at.m0, at.n0, store);
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

template <class Tile>
void launch_tile(const ScaledConvMmaParams& params, int64_t tiles, Stream stream) {
  const ConvParams& p = params.scaled.conv;
  const bool vectors =
      in_vectors(p.x, p.group_channels(), Tile::kVector) && in_vectors(p.w, p.group_channels(), Tile::kVector);
  const auto kernel_of = [&](auto sum) {
    using S = decltype(sum);
    return vectors ? scaled_conv_mma_kernel<Tile, true, S> : scaled_conv_mma_kernel<Tile, false, S>;
  };
  const auto kernel = params.scaled.input_dtype == DType::kInt8 ? kernel_of(int32_t{}) : kernel_of(float{});
  const dim3 grid(static_cast<unsigned>(tiles));
  launch("scaled_conv_mma", kernel, {grid, dim3(Tile::kThreads), stream, Tile::kSharedBytes}, params);
}

}  // namespace

bool scaled_conv_mma_takes(const ScaledConvParams& params) {
  return params.conv.group_channels() * params.conv.group_filters() >= Middle::kVector;
}

void scaled_conv_mma(const ScaledConvParams& params, Stream stream) {
  const ConvParams& p = params.conv;
  const ScaledConvMmaParams launched{params, {decoding_of(params.input_dtype), decoding_of(params.weight_dtype)}};
  // conv_mma's choice: a large tile where half of the multiprocessors or more get one.
  const int64_t m = p.y_pixels(), n = p.group_filters(), large = p.groups * tiles_of<Large::kM, Large::kN>(m, n);
  if (n > Middle::kN && 2 * large >= current_device().multiprocessors) {
    return launch_tile<Large>(launched, large, stream);
  }
  launch_tile<Middle>(launched, p.groups * tiles_of<Middle::kM, Middle::kN>(m, n), stream);
}

}  // namespace warpwright::cuda
