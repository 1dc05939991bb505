// The weight's gradient on Hopper, see conv_wgmma_kernel.cuh. The pixels are cut into parts where the tiles alone are
// few: wgrad_parts.h.

#include "cuda/conv/conv_wgmma.cuh"
#include "cuda/conv/conv_wgmma_kernel.cuh"
#include "cuda/conv/wgmma_maps.h"
#include "cuda/conv/wgrad_parts.h"

namespace warpwright::cuda {
namespace {

constexpr WgmmaShape kFewFilters = kWeightShapes[0], kWide = kWeightShapes[1];
static_assert(std::size(kWeightShapes) == 2);

int64_t steps_of(const ConvParams& p) { return (p.y_pixels() + span_of(p.dtype) - 1) / span_of(p.dtype); }
int64_t spans_of(const ConvParams& p) { return (p.channels + kBoxRows - 1) / kBoxRows; }
// Of the product: whole boxes of each tap's channels.
int64_t columns_of(const ConvParams& p) { return p.taps() * spans_of(p) * kBoxRows; }

// The elements of y by themselves.
ConvPixelsMap y_map(const ConvParams& p) {
  ConvPositions at[kConvDims];
  for (int d = 0; d < kConvDims; ++d) at[d] = {p.y_size[kConvDims - 1 - d], 0, 1, 0};
  return conv_pixels_map(p, p.y, p.filters, p.y_size, at, span_of(p.dtype));
}
ConvPixelsMap x_map(const ConvParams& p) {
  ConvPositions at[kConvDims];
  for (int d = 0; d < kConvDims; ++d) {
    const int from = kConvDims - 1 - d;
    at[d] = {p.y_size[from], -p.padding[from], p.stride[from], (p.kernel[from] - 1) * p.dilation[from]};
  }
  return conv_pixels_map(p, p.x, p.channels, p.x_size, at, span_of(p.dtype));
}

// (filters, taps, channels) without gaps.
bool writes_evenly(const ConvParams& p) {
  int64_t stride = p.channels;
  for (const int d : {2, 1, 0}) {
    if (p.kernel[d] > 1 && p.w.stride[2 + d] != stride) return false;
    stride *= p.kernel[d];
  }
  return p.w.stride[1] == 1 && (p.filters == 1 || p.w.stride[0] == stride);
}

}  // namespace

bool conv_wgrad_wgmma_takes(const ConvParams& p) {
  if (!could_take_wgmma(p)) return false;
  if (2 * p.filters < kFewFilters.tile_m || 2 * p.channels < spans_of(p) * kBoxRows) return false;
  return writes_evenly(p) && x_map(p).fits() && y_map(p).fits();
}

void conv_wgrad_wgmma(const ConvParams& p, const GemmPlan& plan, float* partials, Stream stream) {
  const int splits = plan.splits;
  const ConvPixelsMap y = y_map(p), x = x_map(p);
  ConvWeightParams k{};
  k.gemm = plain_product(p.dtype, p.filters, p.channels * p.taps(), p.w.data);
  const WgradParams parts{p, splits > 1 ? partials : nullptr, splits};
  k.partials = parts.partials;
  k.grad_bias = p.grad_bias;
  k.bias_partials = parts.bias_partials();
  k.a.map = y.encode();
  k.b.map = x.encode();
  k.a_dims = y.dims();
  k.b_dims = x.dims();
  k.channels = static_cast<int>(p.channels);
  k.spans = static_cast<int>(spans_of(p));
  for (int d = 0; d < kConvDims; ++d) {
    const int from = kConvDims - 1 - d;
    k.size[d] = static_cast<int>(p.y_size[from]);
    k.first[d] = static_cast<int>(-p.padding[from]);
    k.step[d] = static_cast<int>(p.stride[from]);
    k.dilation[d] = static_cast<int>(p.dilation[from]);
    k.taps[d] = static_cast<int>(p.kernel[from]);
  }
  // A box of columns is one of the output's where no tap's last one reaches beyond its channels.
  const bool whole = p.channels % kBoxRows == 0;
  set_walk(k, plan, p.filters, columns_of(p), steps_of(p), splits);
  set_epilogue(k, plan.tile_n, splits == 1 && whole && wgmma_leaves_by_tma(k.gemm));
  if (plan.tile_m == kWide.tile_m) {
    launch_conv_wgmma<ConvWeightParams, kWide.tile_m, kWide.tile_n, kWide.pingpong>("conv_wgrad_wgmma", k, stream);
  } else {
    launch_conv_wgmma<ConvWeightParams, kFewFilters.tile_m, kFewFilters.tile_n, kFewFilters.pingpong>(
        "conv_wgrad_wgmma", k, stream);
  }
  if (splits > 1) reduce_wgrad(parts, stream);
}

}  // namespace warpwright::cuda
