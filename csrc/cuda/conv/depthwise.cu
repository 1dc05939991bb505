// The forward product and the input's gradient of depthwise convolutions.

#include <numeric>

#include "cuda/conv/depthwise.cuh"
#include "cuda/conv/depthwise.h"
#include "cuda/conv/epilogue.cuh"
#include "cuda/conv/product.cuh"
#include "cuda/launch.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// Positions of a strip: a thread's sums are as many times its channels.
template <int kPack>
constexpr int kStripOf = kPack > 1 ? 4 : 8;
constexpr int kMostTaps = kLastLanes * kMostTapsOfHeight * kPackSize<__half>;

// Columns of taps, from `first` on, as float into shared memory: (column, tap of the height, channel of the block).
template <class T>
__device__ __forceinline__ void stage_taps(const Product<T>& product, int first, int columns, int64_t channel,
                                           int channels, int64_t all_channels, float* staged) {
  const int height = product.taps[1], taps = columns * height;
  for (int i = static_cast<int>(threadIdx.x); i < taps * channels; i += kDepthwiseThreads) {
    const int tap = i % taps, c = i / taps;
    const int column = first + tap / height;
    const int64_t from = column / product.taps[2] * product.filters.tap_stride[0] +
                         tap % height * product.filters.tap_stride[1] +
                         column % product.taps[2] * product.filters.tap_stride[2];
    const bool there = channel + c < all_channels;
    staged[tap * channels + c] =
        there ? to_float(product.filters.data[(channel + c) * product.filters.row_stride + from]) : 0.0f;
  }
}

// The gradient walks its taps back, so that one element on is one tap on: as the forward product does.
template <class T>
__device__ __forceinline__ void turn_taps(Product<T>& product) {
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    const int last = product.taps[d] - 1;
    product.origin[d] += last * product.pixels.step[d];
    product.pixels.step[d] = -product.pixels.step[d];
    product.filters.data += last * product.filters.tap_stride[d];
    product.filters.tap_stride[d] = -product.filters.tap_stride[d];
  }
}

// machine code: 1>: plain; else: 16-byte
template <class T, bool kLast, bool kGradient, int kPack>
__global__ void __launch_bounds__(kDepthwiseThreads, kDepthwiseBlocks)
    conv_depthwise_kernel(const DepthwiseParams params) {
  constexpr int kStrip = kStripOf<kPack>;
  __shared__ float staged[kMostTaps];
  __shared__ Product<T> product;  // The same for all threads, and too much for the registers of each.
  const ConvParams& p = params.conv;
  const DepthwiseLanes<kPack, kLast> lanes(params);
  const int64_t channel_blocks = (p.channels + lanes.channels() - 1) / lanes.channels();
  const int64_t first_channel = blockIdx.x % channel_blocks * lanes.channels();
  if (threadIdx.x == 0) {
    if constexpr (kGradient) {
      product = dgrad_product<T>(p, 0, phase_at(p, blockIdx.x / channel_blocks % conv_phases(p)));
      product.filters.row_stride = p.w.stride[0];
      turn_taps(product);
    } else {
      product = fprop_product<T>(p, 0);
    }
  }
  __syncthreads();
  const int64_t unit_block = blockIdx.x / (channel_blocks * (kGradient ? conv_phases(p) : 1));
  const int64_t sizes[kConvDims] = {product.size[0], strip_count(product.size[1], params.spacing, kStrip),
                                    product.size[2]};
  const int64_t units = p.batch * sizes[0] * sizes[1] * sizes[2], first_unit = unit_block * lanes.units();
  if (first_unit >= units) return;  // Of a phase with fewer positions.
  const int64_t unit = first_unit + lanes.unit(), channel = first_channel + lanes.channel();
  const bool there = unit < units && channel < p.channels;
  ConvPlace place = place_at(there ? unit : 0, sizes);
  place.position[1] = strip_first(place.position[1], params.spacing, kStrip);

  int origin[kConvDims];
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    origin[d] = product.origin[d] + static_cast<int>(place.position[d]) * product.origin_step[d];
  }
  const PixelSource<T>& source = product.pixels;
  // Not product's pointer: of one that was in shared memory the compiler does not know that it is to global memory.
  const T* image = static_cast<const T*>(kGradient ? p.y.data : p.x.data) + place.line * source.image_stride +
                   channel * source.channel_stride;
  const int height = product.taps[1], columns = product.taps[0] * product.taps[2];
  const int at_once = kMostTaps / (lanes.channels() * (height > 0 ? height : 1));
  StripSums<T, kPack, kStrip> sums;
  for (int first = 0; first < columns; first += at_once) {
    const int count = columns - first < at_once ? columns - first : at_once;
    __syncthreads();
    stage_taps(product, first, count, first_channel, lanes.channels(), p.channels, staged);
    __syncthreads();
    for (int c = 0; c < count; ++c) {
      const int z = origin[0] + (first + c) / product.taps[2] * source.step[0];
      const int x = origin[2] + (first + c) % product.taps[2] * source.step[2];
      if (!there || z < 0 || z >= source.size[0] || x < 0 || x >= source.size[2]) continue;
      const T* column = image + z * source.stride[0] + x * source.stride[2];
      for (int residue = 0; residue < params.residues; ++residue) {
        const float* taps = staged + (c * height + residue) * lanes.channels() + lanes.channel();
        const int top = origin[1] + residue * source.step[1];
        const auto elements = [&](int i, float (&to)[kPack]) {
          const int row = top + i * params.window;
          if (row < 0 || row >= source.size[1]) return set_zero(to);
          load_floats<T, kPack>(column + row * source.stride[1], to);
        };
        const auto factors = [&](int j, float (&to)[kPack]) {
#pragma unroll
          for (int e = 0; e < kPack; ++e) to[e] = taps[j * params.residues * lanes.channels() + e];
        };
        sums.slide((height - residue + params.residues - 1) / params.residues, elements, factors);
      }
    }
  }
  if (!there) return;
  sums.finish();
#pragma unroll 1
  for (int m = 0; m < kStrip; ++m) {
    const int64_t row = place.position[1] + m * params.spacing;
    if (row >= product.size[1]) return;
    ConvPlace to{place.line, {place.position[0], row, place.position[2]}};
#pragma unroll
    for (int d = 0; d < kConvDims; ++d) {
      to.position[d] = product.written[d] + to.position[d] * product.written_step[d];
    }
    float values[kPack];
    sums.get(m, values);
    store_channels<T, kPack>(p, kGradient ? p.x : p.y, to, channel, values, kPack);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

template <bool kGradient>
void launch_depthwise(const char* name, const ConvParams& conv, Stream stream) {
  const ConvParams p = strips_along_height(conv);
  const int64_t common = std::gcd(p.stride[1], p.dilation[1]), spacing = p.dilation[1] / common;
  const int64_t residues = kGradient ? 1 : p.stride[1] / common;
  const int64_t window = kGradient ? spacing : spacing * p.stride[1];
  DepthwiseParams params{p, static_cast<int>(spacing), static_cast<int>(residues), static_cast<int>(window)};
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    visit_layout<T>({kGradient ? &p.y : &p.x}, p.channels, [&](auto pack, auto last) {
      constexpr int kStrip = kStripOf<pack()>;
      // Positions of the first phase, which has the most.
      int64_t size[kConvDims];
      for (int d = 0; d < kConvDims; ++d) size[d] = kGradient ? ceil_div(p.x_size[d], p.stride[d]) : p.y_size[d];
      const int64_t units = p.batch * size[0] * strip_count(size[1], spacing, kStrip) * size[2];
      params.lanes = depthwise_lanes(last(), units);
      const int64_t blocks = ceil_div(p.channels, params.lanes * pack()) *
                             ceil_div(units, kDepthwiseThreads / params.lanes) * (kGradient ? conv_phases(p) : 1);
      if (blocks == 0) return;
      launch(name, conv_depthwise_kernel<T, last(), kGradient, pack()>,
             {dim3(static_cast<unsigned>(blocks)), dim3(kDepthwiseThreads), stream}, params);
    });
  });
}

}  // namespace

bool depthwise_takes(const ConvParams& p) {
  return p.groups == p.channels && p.groups == p.filters && p.groups > 0 &&
         strips_along_height(p).kernel[1] <= kMostTapsOfHeight;
}

void depthwise_fprop(const ConvParams& params, Stream stream) {
  launch_depthwise<false>("conv_depthwise_fprop", params, stream);
}

void depthwise_dgrad(const ConvParams& params, Stream stream) {
  launch_depthwise<true>("conv_depthwise_dgrad", params, stream);
}

}  // namespace warpwright::cuda
