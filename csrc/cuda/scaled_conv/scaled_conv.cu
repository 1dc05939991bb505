// Which kernel convolves 8-bit tensors, and the one for groups of few channels, of depthwise convolutions above all: a
// thread sums an output, and neighbouring threads have neighbouring outputs.

#include <type_traits>

#include "cuda/launch.h"
#include "cuda/scaled_conv/epilogue.cuh"
#include "cuda/scaled_conv/scaled_conv_mma.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

__device__ __forceinline__ float decoded(DType dtype, uint8_t byte) {
  return dtype == DType::kFloat8E4M3 ? decode_float8<E4M3>(byte) : decode_float8<E5M2>(byte);
}

// Adds the products of a group's channels, through one tap, to a sum of S: int32_t, or float for 8-bit floats.
template <class S>
__device__ __forceinline__ S add_channels(const ScaledConvParams& p, const uint8_t* x, const uint8_t* w, S sum) {
  const int64_t x_step = p.conv.x.stride[1], w_step = p.conv.w.stride[1];
#pragma unroll 1
  for (int64_t c = 0; c < p.conv.group_channels(); ++c) {
    const uint8_t a = x[c * x_step], b = w[c * w_step];
    if constexpr (std::is_same_v<S, float>) {
      sum += decoded(p.input_dtype, a) * decoded(p.weight_dtype, b);
    } else {
      sum += static_cast<int8_t>(a) * static_cast<int8_t>(b);
    }
  }
  return sum;
}

// machine code: int>: IMAD; else: FFMA
template <class S>
__global__ void __launch_bounds__(kThreads) scaled_conv_direct_kernel(const ScaledConvParams params) {
  const ConvParams& p = params.conv;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x, pixels = p.y_pixels();
  if (index >= pixels * p.filters) return;
  // In the order in which y lies: channels last, or not.
  int64_t filter, pixel;
  if (p.y.stride[1] == 1) {
    filter = index % p.filters;
    pixel = index / p.filters;
  } else {
    const int64_t image = p.y_size[0] * p.y_size[1] * p.y_size[2], line = index / image;
    filter = line % p.filters;
    pixel = line / p.filters * image + index % image;
  }
  const ConvPlace place = place_at(pixel, p.y_size);
  const int64_t channel = filter / p.group_filters() * p.group_channels();
  const auto* const x = static_cast<const uint8_t*>(p.x.data) + place.line * p.x.stride[0] + channel * p.x.stride[1];
  const auto* const w = static_cast<const uint8_t*>(p.w.data) + filter * p.w.stride[0];
  float total = 0.0f;  // Of 8-bit floats; their sum moves to it every kScaleBlock or a little more.
  S sum = 0;
  int64_t count = 0;
#pragma unroll 1
  for (int64_t t = 0; t < p.taps(); ++t) {
    const ConvPlace tap = place_at(t, p.kernel);
    int64_t from = 0;
    bool inside = true;
#pragma unroll
    for (int d = 0; d < kConvDims; ++d) {
      const int64_t i = place.position[d] * p.stride[d] - p.padding[d] + tap.position[d] * p.dilation[d];
      inside = inside && i >= 0 && i < p.x_size[d];
      from += i * p.x.stride[2 + d];
    }
    if (!inside) continue;
    sum = add_channels(params, x + from, w + offset_in(p.w, tap), sum);
    count += p.group_channels();
    if (std::is_same_v<S, float> && count >= kScaleBlock) {
      total += static_cast<float>(sum);
      sum = 0;
      count = 0;
    }
  }
  total += static_cast<float>(sum);
  store_scaled<1>(params, place, filter, &total, 1);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void scaled_convolution(const ScaledConvParams& params, Stream stream) {
  if (scaled_conv_mma_takes(params)) return scaled_conv_mma(params, stream);
  const int64_t blocks = (params.conv.y_pixels() * params.conv.filters + kThreads - 1) / kThreads;
  const auto kernel =
      params.input_dtype == DType::kInt8 ? scaled_conv_direct_kernel<int32_t> : scaled_conv_direct_kernel<float>;
  launch("scaled_conv_direct", kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream}, params);
}

}  // namespace warpwright::cuda
