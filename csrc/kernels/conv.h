// Params and launchers of the convolution family. On the CPU the products are oneDNN's: bindings/onednn.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// A tensor of four dimensions with any strides: NCHW, channels_last and slices of either are the same kernel.
struct Tensor4 {
  void* data;
  int64_t stride[4];

  WARPWRIGHT_HOST_DEVICE int64_t offset(int64_t i, int64_t j, int64_t k, int64_t l) const {
    return i * stride[0] + j * stride[1] + k * stride[2] + l * stride[3];
  }
};

// output[n][k][p][q] = activation(sum over c, r, s of input[n][c][p * stride - padding + r * dilation][...]
//                                 * weight[k][c][r][s] + bias[k] + residual[n][k][p][q]).
// The two gradients read and write the same tensors in other roles: see conv_input_grad and conv_weight_grad.
struct Conv2dParams {
  Tensor4 input;     // (batch, channels, height, width)
  Tensor4 weight;    // (filters, channels / groups, kernel_h, kernel_w)
  Tensor4 output;    // (batch, filters, out_height, out_width); its gradient in the backward kernels
  Tensor4 residual;  // like output, data null without one
  void* preact;      // the strides of output, or null
  const void* bias;  // (filters), or null
  int64_t batch, channels, height, width;
  int64_t filters, kernel_h, kernel_w;
  int64_t out_height, out_width;
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t groups;
  Activation activation;
  DType dtype;  // of every tensor here
};

}  // namespace warpwright

namespace warpwright::cuda {
void conv_forward(const Conv2dParams& params, Stream stream);
// Writes input from output and weight.
void conv_input_grad(const Conv2dParams& params, Stream stream);
// Writes weight from input and output.
void conv_weight_grad(const Conv2dParams& params, Stream stream);
}  // namespace warpwright::cuda
