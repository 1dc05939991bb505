// The weight's gradient of depthwise convolutions. The same slide as depthwise.cuh's with the roles exchanged: a strip
// is one of taps, and what runs along it is a column of y.

#include <algorithm>
#include <numeric>

#include "cuda/conv/depthwise.cuh"
#include "cuda/conv/depthwise.h"
#include "cuda/conv/epilogue.cuh"
#include "cuda/conv/wgrad_parts.h"
#include "cuda/launch.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kTapStrip = 4;

// Strips of taps of a filter.
WARPWRIGHT_HOST_DEVICE int64_t tap_strips(const ConvParams& p, int spacing) {
  return p.kernel[0] * strip_count(p.kernel[1], spacing, kTapStrip) * p.kernel[2];
}
// Columns of y.
WARPWRIGHT_HOST_DEVICE int64_t column_count(const ConvParams& p) { return p.batch * p.y_size[0] * p.y_size[2]; }

// What a block sums: a strip of taps of some channels, over some columns of y.
struct Part {
  int64_t tap[kConvDims];    // the strip's first
  int64_t shift[kConvDims];  // from position * stride to the element that it meets
  int64_t channel, split, first, end;
};
__device__ __forceinline__ Part part_of(const DepthwiseParams& params, int channels) {
  const ConvParams& p = params.conv;
  const int64_t sizes[kConvDims] = {p.kernel[0], strip_count(p.kernel[1], params.spacing, kTapStrip), p.kernel[2]};
  const int64_t strips = tap_strips(p, params.spacing), blocks = (p.channels + channels - 1) / channels;
  const ConvPlace place = place_at(blockIdx.x % strips, sizes);
  Part part{};
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    part.tap[d] = d == 1 ? strip_first(place.position[d], params.spacing, kTapStrip) : place.position[d];
    part.shift[d] = part.tap[d] * p.dilation[d] - p.padding[d];
  }
  part.channel = blockIdx.x / strips % blocks * channels;
  part.split = blockIdx.x / (strips * blocks);
  part.first = column_count(p) * part.split / params.splits;
  part.end = column_count(p) * (part.split + 1) / params.splits;
  return part;
}

// Adds `count` elements of y, `step` apart.
template <class T, int kPack>
__device__ __forceinline__ void add_column(float (&sums)[kPack], const T* y, int64_t step, int count) {
#pragma unroll 2
  for (int row = 0; row < count; ++row) {
    float values[kPack];
    load_floats<T, kPack>(y + row * step, values);
#pragma unroll
    for (int e = 0; e < kPack; ++e) sums[e] += values[e];
  }
}

// machine code: 1>: plain; else: LDG.128
template <class T, bool kLast, int kPack>
__global__ void __launch_bounds__(kDepthwiseThreads, kDepthwiseBlocks)
    conv_depthwise_wgrad_kernel(const DepthwiseParams params) {
  __shared__ float found[kDepthwiseThreads * kPack];
  __shared__ Part part;
  const ConvParams& p = params.conv;
  const DepthwiseLanes<kPack, kLast> lanes(params);
  if (threadIdx.x == 0) part = part_of(params, lanes.channels());
  __syncthreads();
  const int64_t channel = part.channel + lanes.channel();
  const int64_t column_sizes[kConvDims] = {1, p.y_size[0], p.y_size[2]};
  const T* xs = static_cast<const T*>(p.x.data) + channel * p.x.stride[1];
  const T* ys = static_cast<const T*>(p.y.data) + channel * p.y.stride[1];
  const int height = static_cast<int>(p.y_size[1]);

  StripSums<T, kPack, kTapStrip> sums;
  float column_sums[kPack] = {};  // Of y, by the blocks of the first strip.
  const bool sums_bias = p.grad_bias != nullptr && blockIdx.x % tap_strips(p, params.spacing) == 0;
  for (int64_t at = part.first + lanes.unit(); at < part.end && channel < p.channels; at += lanes.units()) {
    const ConvPlace place = place_at(at, column_sizes);
    const int64_t z = place.position[1] * p.stride[0] + part.shift[0];
    const int64_t c = place.position[2] * p.stride[2] + part.shift[2];
    const T* y =
        ys + place.line * p.y.stride[0] + place.position[1] * p.y.stride[2] + place.position[2] * p.y.stride[4];
    if (sums_bias) add_column<T, kPack>(column_sums, y, p.y.stride[3], height);
    if (z < 0 || z >= p.x_size[0] || c < 0 || c >= p.x_size[2]) continue;
    const T* x = xs + place.line * p.x.stride[0] + z * p.x.stride[2] + c * p.x.stride[4];
    for (int residue = 0; residue < params.residues; ++residue) {
      const int top = static_cast<int>(residue * p.stride[1] + part.shift[1]);
      const auto elements = [&](int i, float (&to)[kPack]) {
        const int row = top + i * params.window;
        if (row < 0 || row >= p.x_size[1]) return set_zero(to);
        load_floats<T, kPack>(x + row * p.x.stride[3], to);
      };
      const auto factors = [&](int j, float (&to)[kPack]) {
        load_floats<T, kPack>(y + (residue + j * params.residues) * p.y.stride[3], to);
      };
      sums.slide((height - residue + params.residues - 1) / params.residues, elements, factors);
    }
  }
  sums.finish();
  // Adds up what the block's units found. A thread for each channel calls store(channel, sum).
  const auto add_units = [&](const float (&values)[kPack], const auto& store) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kPack; ++e) found[lanes.unit() * lanes.channels() + lanes.channel() + e] = values[e];
    for (int half = lanes.units() / 2; half > 0; half /= 2) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < half * lanes.channels(); i += kDepthwiseThreads) {
        found[i] += found[half * lanes.channels() + i];
      }
    }
    __syncthreads();
    const int c = static_cast<int>(threadIdx.x);
    if (c < lanes.channels() && part.channel + c < p.channels) store(part.channel + c, found[c]);
  };
#pragma unroll 1
  for (int m = 0; m < kTapStrip; ++m) {
    float values[kPack];
    sums.get(m, values);
    add_units(values, [&](int64_t filter, float sum) {
      const int64_t row = part.tap[1] + m * params.spacing;
      if (row >= p.kernel[1]) return;
      const int64_t column = (part.tap[0] * p.kernel[1] + row) * p.kernel[2] + part.tap[2];
      if (params.splits > 1) {
        params.partials[(part.split * p.channels + filter) * p.taps() + column] = sum;
      } else {
        store_weight<T>(p, filter, column, sum);
      }
    });
  }
  if (!sums_bias) return;
  add_units(column_sums, [&](int64_t filter, float sum) {
    if (params.splits > 1) {
      params.bias_partials[part.split * p.channels + filter] = sum;
    } else {
      store_bias_grad<T>(p, filter, sum);
    }
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

struct Strips {
  ConvParams conv;
  int64_t spacing, residues;  // of taps, and of positions of y
};
Strips strips_of(const ConvParams& params) {
  const ConvParams p = strips_along_height(params);
  const int64_t common = std::gcd(p.stride[1], p.dilation[1]);
  return {p, p.stride[1] / common, p.dilation[1] / common};
}

}  // namespace

int depthwise_wgrad_splits(const ConvParams& params) {
  const auto [p, spacing, residues] = strips_of(params);
  const int64_t columns = column_count(p), tiles = ceil_div(p.channels, 64) * tap_strips(p, static_cast<int>(spacing));
  // Some 512 blocks or more, a thread's sum of at most about 1024 products, and a column for every thread.
  constexpr int64_t kBlocks = 512, kMostProducts = 1024, kColumnsAtOnce = kDepthwiseThreads / kLastLanes;
  const int64_t wanted =
      std::max(kBlocks / std::max<int64_t>(tiles, 1), columns * p.y_size[1] / (kColumnsAtOnce * kMostProducts));
  return allowed_splits(p, std::min(wanted, columns / kColumnsAtOnce));
}

void depthwise_wgrad(const ConvParams& conv, float* partials, int splits, Stream stream) {
  const auto [p, spacing, residues] = strips_of(conv);
  DepthwiseParams params{p, static_cast<int>(spacing), static_cast<int>(residues),
                         static_cast<int>(spacing * p.dilation[1])};
  const WgradParams parts{p, splits > 1 ? partials : nullptr, splits};
  params.partials = partials;
  params.bias_partials = parts.bias_partials();
  params.splits = splits;
  visit_float(p.dtype, [&, &p = p](auto tag) {
    using T = decltype(tag);
    visit_layout<T>({&p.x, &p.y}, p.channels, [&](auto pack, auto last) {
      params.lanes = depthwise_lanes(last(), ceil_div(column_count(p), splits));
      const int64_t blocks =
          ceil_div(p.channels, params.lanes * pack()) * tap_strips(p, params.spacing) * params.splits;
      if (blocks == 0) return;
      launch("conv_depthwise_wgrad", conv_depthwise_wgrad_kernel<T, last(), pack()>,
             {dim3(static_cast<unsigned>(blocks)), dim3(kDepthwiseThreads), stream}, params);
    });
  });
  if (splits > 1) reduce_wgrad(parts, stream);
}

}  // namespace warpwright::cuda
