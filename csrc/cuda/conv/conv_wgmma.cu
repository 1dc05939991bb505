// The forward product and the input's gradient on Hopper, see conv_wgmma_kernel.cuh: their kernels, and what they take.

#include "cuda/conv/conv_wgmma.cuh"
#include "cuda/conv/conv_wgmma_kernel.cuh"
#include "cuda/conv/wgmma_maps.h"

namespace warpwright::cuda {
namespace {

// Wide tiles read the fewest bytes for a product; pingpong ones hide their epilogue.
constexpr ConvWgmmaShape kWide{128, 256, false}, kSquare{128, 128, true}, kNarrow{128, 64, true};

// The widest that `n` fills more than half of and that gives every multiprocessor a tile, else the narrow one.
ConvWgmmaShape shape_for(int64_t m, int64_t n) {
  for (const ConvWgmmaShape& shape : {kWide, kSquare}) {
    if (2 * n > shape.tile_n && shape.tiles(m, n) >= current_device().multiprocessors) return shape;
  }
  return kNarrow;
}

// A product of pixels with filters, but for the tensor maps.
struct PixelProduct {
  ConvPixelsMap pixels;
  ptx::TensorLayout weight;
  ConvPixelsParams kernel;
  ConvWgmmaShape shape;
  bool fits;
};

// `channels` of `source` are summed over; `output`, of `output_size`, is written.
PixelProduct product_of(const ConvParams& p, const ConvTensor& source, int64_t channels,
                        const int64_t (&source_size)[kConvDims], const ConvPositions (&positions)[kConvDims],
                        const ConvTensor& output, int64_t output_channels, const int64_t (&output_size)[kConvDims]) {
  constexpr int64_t kMost = INT32_MAX - 1024;  // A tile may reach past it.
  PixelProduct product{};
  ConvPixelsParams& k = product.kernel;
  GemmParams& g = k.gemm;
  g.dtype = g.output_dtype = p.dtype;
  g.m = p.batch * output_size[0] * output_size[1] * output_size[2];
  g.n = output_channels;
  g.alpha = g.beta = g.output_scale = 1;
  g.batch[0] = g.batch[1] = g.batch[2] = 1;
  g.activation = p.activation;
  g.output = output.data;
  g.preact = p.preact;
  g.residual = p.residual.data;
  g.residual_row = g.residual == nullptr ? 0 : conv_pixel_stride(p.residual, p.batch, output_size, g.n);
  g.residual_col = p.residual.stride[1];
  k.norm = p.norm;
  (p.norm.mean.data == nullptr ? g.bias : k.bias) = p.bias;
  k.spatial = conv_spatial_dims(p);
  const int span = span_of(p.dtype);
  const int64_t spans = (channels + span - 1) / span;
  k.spans = static_cast<int>(std::min(spans, kMost));
  product.shape = shape_for(g.m, g.n);
  product.pixels = conv_pixels_map(p, source, channels, source_size, positions, product.shape.tile_m);
  product.weight = conv_weight_layout(p);

  const bool half = p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16;
  if (!half || p.groups != 1 || std::min(g.m, g.n) < 1 || p.mean_partials != nullptr) return product;
  if (std::max({g.m, g.n, channels, p.taps() * spans}) > kMost || product.shape.tiles(g.m, g.n) > kMost) return product;
  if (*std::max_element(source_size, source_size + kConvDims) > kMost || 2 * channels < spans * span) return product;
  const Device device = current_device();
  if (device.capability != 90 || 2 * product.shape.tiles(g.m, g.n) < device.multiprocessors) return product;
  if (output.stride[1] != 1 || conv_pixel_stride(output, p.batch, output_size, g.n) != g.n) return product;
  if (g.residual != nullptr && g.residual_row == 0) return product;
  product.fits = product.pixels.fits() && ptx::tensor_map_takes(product.weight);
  for (int d = 0; d < kConvDims; ++d) {  // Which are in range then.
    k.size[d] = static_cast<int>(positions[d].count);
    k.first[d] = static_cast<int>(positions[d].first);
    k.step[d] = static_cast<int>(positions[d].step);
    k.dilation[d] = static_cast<int>(positions[d].dilation);
    k.taps[d] = static_cast<int>(positions[d].taps);
  }
  return product;
}

PixelProduct fprop_product_of(const ConvParams& p) {
  ConvPositions at[kConvDims];
  for (int d = 0; d < kConvDims; ++d) {
    const int from = kConvDims - 1 - d;
    at[d] = {p.y_size[from], -p.padding[from], p.stride[from], p.kernel[from], p.dilation[from]};
  }
  PixelProduct product = product_of(p, p.x, p.channels, p.x_size, at, p.y, p.filters, p.y_size);
  product.kernel.a.along_k = product.kernel.b.along_k = true;
  return product;
}

// Element i of x meets y at i + padding - tap * dilation, so filters slide over y as well, the last tap first.
PixelProduct dgrad_product_of(const ConvParams& p) {
  ConvPositions at[kConvDims];
  bool dense = true;
  for (int d = 0; d < kConvDims; ++d) {
    const int from = kConvDims - 1 - d;
    const int64_t reach = (p.kernel[from] - 1) * p.dilation[from];
    at[d] = {p.x_size[from], p.padding[from] - reach, 1, p.kernel[from], p.dilation[from]};
    dense = dense && p.stride[from] == 1;
  }
  PixelProduct product = product_of(p, p.y, p.filters, p.y_size, at, p.x, p.channels, p.x_size);
  product.fits = product.fits && dense;
  product.kernel.a.along_k = product.kernel.mirrored = true;
  return product;
}

void run(const char* name, PixelProduct product, Stream stream) {
  ConvPixelsParams& k = product.kernel;
  const ConvWgmmaShape& shape = product.shape;
  const int span = span_of(k.gemm.dtype);
  k.a.map = product.pixels.encode();
  k.b.map = k.b.along_k ? ptx::encode_tiled(product.weight, {{span, 1, 1, 1, shape.tile_n}}, kOperandSwizzle)
                        : ptx::encode_tiled(product.weight, {{kBoxRows, 1, 1, 1, span}}, kOperandSwizzle);
  const int64_t taps = int64_t{k.taps[0]} * k.taps[1] * k.taps[2];
  const bool normed = k.norm.mean.data != nullptr;
  set_walk(k, shape, k.gemm.n, taps * k.spans, 1, !normed && wgmma_leaves_by_tma(k.gemm));
  if (shape.tile_n == kWide.tile_n) {
    launch_conv_wgmma<ConvPixelsParams, kWide.tile_m, kWide.tile_n, kWide.pingpong>(name, k, stream);
  } else if (shape.tile_n == kSquare.tile_n) {
    launch_conv_wgmma<ConvPixelsParams, kSquare.tile_m, kSquare.tile_n, kSquare.pingpong>(name, k, stream);
  } else {
    launch_conv_wgmma<ConvPixelsParams, kNarrow.tile_m, kNarrow.tile_n, kNarrow.pingpong>(name, k, stream);
  }
}

}  // namespace

bool conv_fprop_wgmma_takes(const ConvParams& p) { return fprop_product_of(p).fits; }
void conv_fprop_wgmma(const ConvParams& p, Stream stream) { run("conv_fprop_wgmma", fprop_product_of(p), stream); }

bool conv_dgrad_wgmma_takes(const ConvParams& p) { return dgrad_product_of(p).fits; }
void conv_dgrad_wgmma(const ConvParams& p, Stream stream) { run("conv_dgrad_wgmma", dgrad_product_of(p), stream); }

}  // namespace warpwright::cuda
