// The forward product and the input's gradient on Hopper, see conv_wgmma_kernel.cuh: their kernels, and what they take.

#include <algorithm>
#include <iterator>
#include <type_traits>

#include "cuda/conv/conv_wgmma.cuh"
#include "cuda/conv/conv_wgmma_kernel.cuh"
#include "cuda/conv/geometry.cuh"
#include "cuda/conv/wgmma_maps.h"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// One of them has a producer's box of pixels for its rows.
constexpr int kRows = kConvShapes[0].tile_m, kLeastColumns = 64;
constexpr bool serves(const WgmmaShape& shape) { return shape.tile_m == kRows && shape.tile_n >= kLeastColumns; }
static_assert(std::all_of(std::begin(kConvShapes), std::end(kConvShapes), serves));

// The sides of a product: filters slide over `source`, whose channels are summed over, and `output` is written.
struct Sides {
  const ConvTensor &source, &output;
  const int64_t (&source_size)[kConvDims], (&output_size)[kConvDims];  // Depth, height, width.
  int64_t channels, output_channels;
};

// A product of pixels with filters, but for the tensor maps.
struct PixelProduct {
  ConvPixelsMap pixels;
  ptx::TensorLayout weight;
  ConvMeasuredParams kernel;
  int64_t rows;  // Of a phase.
  bool fits;
};

// Of `kernel`, taps and phases are set.
PixelProduct product_of(const ConvParams& p, const Sides& sides, const ConvPositions (&positions)[kConvDims],
                        const ConvMeasuredParams& kernel) {
  PixelProduct product{};
  ConvMeasuredParams& k = product.kernel = kernel;
  GemmParams& g = k.gemm;
  g = plain_product(p.dtype, p.batch, sides.output_channels, sides.output.data);
  product.rows = p.batch;
  int64_t phases = 1;
  for (int d = 0; d < kConvDims; ++d) {
    g.m *= sides.output_size[d];
    product.rows *= positions[d].count;
    k.size[d] = static_cast<int>(positions[d].count);
    k.first[d] = static_cast<int>(positions[d].first);
    k.step[d] = static_cast<int>(positions[d].step);
    k.output_size[d] = static_cast<int>(sides.output_size[kConvDims - 1 - d]);
    phases *= k.phases[d];
  }
  k.phased = phases > 1;
  g.activation = p.activation;
  g.preact = p.preact;
  g.residual = p.residual.data;
  g.residual_row = g.residual == nullptr ? 0 : conv_pixel_stride(p.residual, p.batch, sides.output_size, g.n);
  g.residual_col = p.residual.stride[1];
  k.norm = p.norm;
  (p.norm.mean.data == nullptr ? g.bias : k.bias) = p.bias;
  k.mean_partials = p.mean_partials;
  k.square_partials = p.square_partials;
  const int span = span_of(p.dtype);
  k.spans = static_cast<int>((sides.channels + span - 1) / span);
  product.pixels = conv_pixels_map(p, sides.source, sides.channels, sides.source_size, positions, kRows);
  k.a_dims = product.pixels.dims();
  product.weight = conv_weight_layout(p);
  return product;
}

bool fits(const PixelProduct& product, const ConvParams& p, const Sides& sides) {
  const ConvMeasuredParams& k = product.kernel;
  const GemmParams& g = k.gemm;
  const int64_t most = tiles_of<kRows, kLeastColumns>(product.rows, g.n) * k.phases[0] * k.phases[1] * k.phases[2];
  if (2 * sides.channels < int64_t{k.spans} * span_of(p.dtype) || most > INT32_MAX) return false;
  if (sides.output.stride[1] != 1 || conv_pixel_stride(sides.output, p.batch, sides.output_size, g.n) != g.n)
    return false;
  if (g.residual != nullptr && g.residual_row == 0) return false;
  return product.pixels.fits() && ptx::tensor_map_takes(product.weight);
}

PixelProduct fprop_product_of(const ConvParams& p) {
  const Sides sides{p.x, p.y, p.x_size, p.y_size, p.channels, p.filters};
  ConvMeasuredParams kernel{};
  ConvPositions at[kConvDims];
  for (int d = 0; d < kConvDims; ++d) {
    const int from = kConvDims - 1 - d;
    at[d] = {p.y_size[from], -p.padding[from], p.stride[from], (p.kernel[from] - 1) * p.dilation[from]};
    kernel.phases[d] = kernel.tap_step[d] = 1;
    kernel.phase[d][0].taps = static_cast<int>(p.kernel[from]);
    kernel.dilation[d] = static_cast<int>(p.dilation[from]);
  }
  kernel.a.along_k = kernel.b.along_k = true;
  PixelProduct product = product_of(p, sides, at, kernel);
  product.fits = fits(product, p, sides);
  return product;
}

// Element i of x meets y at (i + padding - tap * dilation) / stride. So filters slide over y as well: over a phase's
// positions by one element for each, the last tap first. A filter of any phase begins where that one does whose first
// element comes first, and adds what it lies further on to its offsets: one map serves all phases.
PixelProduct dgrad_product_of(const ConvParams& p) {
  const Sides sides{p.y, p.x, p.y_size, p.x_size, p.filters, p.channels};
  ConvMeasuredParams kernel{};
  ConvPositions at[kConvDims];
  for (int d = 0; d < kConvDims; ++d) {
    const int from = kConvDims - 1 - d;
    ConvPhaseSide phases[kMostPhases];
    kernel.phases[d] = static_cast<int>(p.stride[from]);
    int64_t begin = INT64_MAX, end = INT64_MIN;
    for (int i = 0; i < kernel.phases[d]; ++i) {
      const ConvPhaseSide& phase = phases[i] = phase_side(p, from, i);
      if (phase.taps == 0) continue;
      begin = std::min(begin, phase.first_y - (phase.taps - 1) * phase.y_step);
      end = std::max(end, phase.first_y);
    }
    for (int i = 0; i < kernel.phases[d]; ++i) {
      const ConvPhaseSide& phase = phases[i];
      const int64_t last = phase.taps - 1;
      kernel.phase[d][i] = {static_cast<int>(phase.taps), static_cast<int>(phase.first_y - last * phase.y_step - begin),
                            static_cast<int>(phase.first_tap + last * phase.tap_step)};
    }
    kernel.dilation[d] = static_cast<int>(phases[0].y_step);
    kernel.tap_step[d] = static_cast<int>(-phases[0].tap_step);
    at[d] = {(p.x_size[from] + p.stride[from] - 1) / p.stride[from], begin, 1, end - begin};
  }
  kernel.a.along_k = true;
  PixelProduct product = product_of(p, sides, at, kernel);
  product.fits = fits(product, p, sides);
  return product;
}

// By the plan's tile, which is one that kernels of Params are compiled for.
template <class Params, size_t kAt = 0>
void run_tile(const char* name, const Params& k, const GemmPlan& plan, Stream stream) {
  if constexpr (kAt < std::size(kConvShapes)) {
    constexpr WgmmaShape kShape = kConvShapes[kAt];
    constexpr bool kCompiled = kShape.measures() || !std::is_same_v<Params, ConvMeasuredParams>;
    if (plan.tile_n != kShape.tile_n) return run_tile<Params, kAt + 1>(name, k, plan, stream);
    if constexpr (kCompiled) launch_conv_wgmma<Params, kShape.tile_m, kShape.tile_n, kShape.pingpong>(name, k, stream);
  }
}

void run(const char* name, PixelProduct product, const GemmPlan& plan, Stream stream) {
  ConvMeasuredParams& k = product.kernel;
  const int span = span_of(k.gemm.dtype);
  k.a.map = product.pixels.encode();
  k.b.map = k.b.along_k ? ptx::encode_tiled(product.weight, {{span, 1, 1, 1, plan.tile_n}}, kOperandSwizzle)
                        : ptx::encode_tiled(product.weight, {{kBoxRows, 1, 1, 1, span}}, kOperandSwizzle);
  set_walk(k, plan, product.rows, k.gemm.n, 0, int64_t{k.phases[0]} * k.phases[1] * k.phases[2]);
  const bool normed = k.norm.mean.data != nullptr;
  set_epilogue(k, plan.tile_n, !k.phased && !normed && wgmma_leaves_by_tma(k.gemm));
  if (k.mean_partials != nullptr) {
    run_tile(name, k, plan, stream);
  } else {
    run_tile<ConvPixelsParams>(name, k, plan, stream);
  }
}

}  // namespace

bool conv_fprop_wgmma_takes(const ConvParams& p) { return could_take_wgmma(p) && fprop_product_of(p).fits; }
void conv_fprop_wgmma(const ConvParams& p, const GemmPlan& plan, Stream stream) {
  const char* name = p.mean_partials == nullptr ? "conv_fprop_wgmma" : "conv_fprop_measured_wgmma";
  run(name, fprop_product_of(p), plan, stream);
}

bool conv_dgrad_wgmma_takes(const ConvParams& p) {
  if (!could_take_wgmma(p)) return false;
  const bool few = *std::max_element(p.stride, p.stride + kConvDims) <= kMostPhases;
  return few && dgrad_product_of(p).fits;
}
void conv_dgrad_wgmma(const ConvParams& p, const GemmPlan& plan, Stream stream) {
  run("conv_dgrad_wgmma", dgrad_product_of(p), plan, stream);
}

}  // namespace warpwright::cuda
