// The forward product and the input's gradient on Hopper, see conv_wgmma_kernel.cuh: their kernels, and what they take.

#include "cuda/conv/conv_wgmma.cuh"
#include "cuda/conv/conv_wgmma_kernel.cuh"
#include "cuda/conv/geometry.cuh"
#include "cuda/conv/wgmma_maps.h"

namespace warpwright::cuda {
namespace {

// Wide tiles read the fewest bytes for a product; pingpong ones hide their epilogue.
constexpr ConvWgmmaShape kWide{128, 256, false}, kSquare{128, 128, true}, kNarrow{128, 64, true};

// The widest that `n` fills more than half of and that gives every multiprocessor a tile, else the narrow one.
ConvWgmmaShape shape_for(int64_t m, int64_t n, bool measured) {
  for (const ConvWgmmaShape& shape : {kWide, kSquare}) {
    const bool alone = shape.pingpong || !measured;  // Statistics are those of a consumer's rows.
    if (alone && 2 * n > shape.tile_n && shape.tiles(m, n) >= current_device().multiprocessors) return shape;
  }
  return kNarrow;
}

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
  ConvWgmmaShape shape;
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
  product.shape = shape_for(product.rows * phases, g.n, p.mean_partials != nullptr);
  product.pixels = conv_pixels_map(p, sides.source, sides.channels, sides.source_size, positions, product.shape.tile_m);
  k.a_dims = product.pixels.dims();
  product.weight = conv_weight_layout(p);
  return product;
}

bool fits(const PixelProduct& product, const ConvParams& p, const Sides& sides) {
  const ConvMeasuredParams& k = product.kernel;
  const GemmParams& g = k.gemm;
  const int64_t tiles = product.shape.tiles(product.rows, g.n) * k.phases[0] * k.phases[1] * k.phases[2];
  if (2 * sides.channels < int64_t{k.spans} * span_of(p.dtype)) return false;
  if (2 * tiles < current_device().multiprocessors || tiles > INT32_MAX) return false;
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

template <class Params>
void run_shape(const char* name, const Params& k, const ConvWgmmaShape& shape, Stream stream) {
  if (shape.tile_n == kSquare.tile_n) {
    launch_conv_wgmma<Params, kSquare.tile_m, kSquare.tile_n, kSquare.pingpong>(name, k, stream);
  } else {
    launch_conv_wgmma<Params, kNarrow.tile_m, kNarrow.tile_n, kNarrow.pingpong>(name, k, stream);
  }
}

void run(const char* name, PixelProduct product, Stream stream) {
  ConvMeasuredParams& k = product.kernel;
  const ConvPixelsParams& plain = k;
  const ConvWgmmaShape& shape = product.shape;
  const int span = span_of(k.gemm.dtype);
  k.a.map = product.pixels.encode();
  k.b.map = k.b.along_k ? ptx::encode_tiled(product.weight, {{span, 1, 1, 1, shape.tile_n}}, kOperandSwizzle)
                        : ptx::encode_tiled(product.weight, {{kBoxRows, 1, 1, 1, span}}, kOperandSwizzle);
  set_walk(k, shape, product.rows, k.gemm.n, 0, int64_t{k.phases[0]} * k.phases[1] * k.phases[2]);
  const bool normed = k.norm.mean.data != nullptr;
  set_epilogue(k, shape.tile_n, !k.phased && !normed && wgmma_leaves_by_tma(k.gemm));
  if (k.mean_partials != nullptr) {
    run_shape(name, k, shape, stream);
  } else if (shape.tile_n == kWide.tile_n) {
    launch_conv_wgmma<ConvPixelsParams, kWide.tile_m, kWide.tile_n, kWide.pingpong>(name, plain, stream);
  } else {
    run_shape(name, plain, shape, stream);
  }
}

}  // namespace

bool conv_fprop_wgmma_takes(const ConvParams& p) { return could_take_wgmma(p) && fprop_product_of(p).fits; }
int64_t conv_fprop_wgmma_rows() { return kSquare.tile_m; }
void conv_fprop_wgmma(const ConvParams& p, Stream stream) {
  run(p.mean_partials == nullptr ? "conv_fprop_wgmma" : "conv_fprop_measured_wgmma", fprop_product_of(p), stream);
}

bool conv_dgrad_wgmma_takes(const ConvParams& p) {
  if (!could_take_wgmma(p)) return false;
  const bool few = *std::max_element(p.stride, p.stride + kConvDims) <= kMostPhases;
  return few && dgrad_product_of(p).fits;
}
void conv_dgrad_wgmma(const ConvParams& p, Stream stream) { run("conv_dgrad_wgmma", dgrad_product_of(p), stream); }

}  // namespace warpwright::cuda
