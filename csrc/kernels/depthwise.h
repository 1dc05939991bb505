// Params of the CPU's depthwise convolution: each channel has a filter of its own. One or two dimensions, channels
// first or last.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// One dimension of y[o] = sum over t of x[o * stride - padding + t * dilation] * w[t].
struct DepthwiseAxis {
  int64_t x_size, taps, y_size;
  int64_t stride, padding, dilation;  // padding: before the first element
};

struct DepthwiseParams {
  const void* x;         // (batch, channels, height, width)
  const void* w;         // (channels, taps of height, taps of width) contiguous
  const void* y;         // (batch, channels, height, width): the gradient, where one is computed
  const void* bias;      // (channels), or null
  const void* residual;  // like y, or null
  void* preact;          // like y, or null
  void* output;          // what the launcher writes: y, x or w
  void* partials;        // of the weight's gradient: (depthwise_partials, channels, taps) float, double for float64
  int64_t batch, channels;
  DepthwiseAxis height, width;
  bool channels_last;  // how all four-dimensional tensors lie
  Activation activation;
  DType dtype;

  int64_t taps() const { return height.taps * width.taps; }
};

// The weight's gradient is summed over this many parts of the batch, a split that no number of threads changes.
inline constexpr int64_t kMaxDepthwisePartials = 8;
inline int64_t depthwise_partials(int64_t batch) {
  return batch < kMaxDepthwisePartials ? batch : kMaxDepthwisePartials;
}

}  // namespace warpwright

namespace warpwright::cpu {
void depthwise_forward(const DepthwiseParams& params, Stream);
void depthwise_input_grad(const DepthwiseParams& params, Stream);
void depthwise_weight_grad(const DepthwiseParams& params, Stream);
}  // namespace warpwright::cpu
