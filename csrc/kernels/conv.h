// Params and launchers of the convolution family. On the CPU the products are oneDNN's: bindings/onednn.

#pragma once

#include "kernels/channel_norm.h"
#include "kernels/gemm_plan.h"

namespace warpwright {

inline constexpr int kConvDims = 3;  // Depth, height, width; a convolution of fewer dimensions has sizes of 1 before.

// A tensor (first, second, depth, height, width) with any strides: channels first, channels last and slices of either
// are the same kernel.
struct ConvTensor {
  void* data;
  int64_t stride[2 + kConvDims];
};

// A batch norm with constant statistics, of the sums and their bias: (value - mean) / sqrt(var + eps) * weight + bias.
struct ConvNorm {
  PerChannel mean, var, weight, bias;  // of the written tensor's channels; mean and var are null without a norm
  float eps;
};

// y[n][k][o] = sum over c, t of x[n][c][o * stride - padding + t * dilation] * w[k][c][t], with a position o and a tap
// t of each dimension, is a convolution. Its gradients, and a transposed convolution, which is the gradient of x,
// relate the same three tensors: each kernel writes one of them from the others.
struct ConvParams {
  ConvTensor x;         // (batch, channels, *x_size): what the filters slide over
  ConvTensor w;         // (filters, channels / groups, *kernel)
  ConvTensor y;         // (batch, filters, *y_size): an element for each place of each filter
  ConvTensor residual;  // like what is written, data null without one
  void* preact;         // the strides of what is written, or null
  const void* bias;     // of the written tensor's channels, or null
  ConvNorm norm;        // after the bias, before the residual
  // (slabs, filters), or null: of each conv_statistics_slab pixels of y their mean, and the squared differences to it.
  // Where there is neither residual nor activation.
  float *mean_partials, *square_partials;
  // (filters), or null: of conv_wgrad, where conv_sums_bias says so, the bias's gradient, which is the sum of y.
  void* grad_bias;
  int64_t batch, channels, filters, groups;
  int64_t x_size[kConvDims], kernel[kConvDims], y_size[kConvDims];
  int64_t stride[kConvDims], padding[kConvDims], dilation[kConvDims];  // padding: before the first element
  Activation activation;
  DType dtype;          // of every tensor here
  Precision precision;  // of float32's products on the tensor cores; by kIeee there are none.

  WARPWRIGHT_HOST_DEVICE int64_t group_channels() const { return channels / groups; }
  WARPWRIGHT_HOST_DEVICE int64_t group_filters() const { return filters / groups; }
  WARPWRIGHT_HOST_DEVICE int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  WARPWRIGHT_HOST_DEVICE int64_t y_pixels() const { return batch * y_size[0] * y_size[1] * y_size[2]; }
};

}  // namespace warpwright

namespace warpwright::cuda {
// How the current device computes what one of the functions below writes, which take the plan. `measured`: whether
// statistics of y are wanted.
GemmPlan conv_plan(const ConvParams& params, GemmRole role, bool measured = false);
// How many pixels, in the order of (batch, *y_size), one partial result of conv_fprop holds by a plan that was made
// with `measured`; 0 where it makes none.
int64_t conv_statistics_slab(const GemmPlan& plan);
// Writes y: a convolution, or the input's gradient of a transposed one. The plan is that of kForward.
void conv_fprop(const ConvParams& params, const GemmPlan& plan, Stream stream);
// Writes x: the input's gradient of a convolution, or a transposed one. The plan is that of kInputGradient.
void conv_dgrad(const ConvParams& params, const GemmPlan& plan, Stream stream);
// Writes w, and knows no epilogue. The plan is that of kWeightGradient; with more than one split `partials` holds
// (splits, filters, channels / groups, taps) floats, at most 64 MiB, and behind them for grad_bias (splits, filters).
void conv_wgrad(const ConvParams& params, const GemmPlan& plan, float* partials, Stream stream);
// Whether conv_wgrad by this plan can find the bias's gradient in what it reads.
bool conv_sums_bias(const ConvParams& params, const GemmPlan& plan);
}  // namespace warpwright::cuda
