// What the convolution bindings ask of a backend. bindings/conv.cpp defines it for CUDA and the emulator,
// bindings/onednn/conv.cpp for the CPU.

#pragma once

#include "bindings/gemm.h"

namespace warpwright {

struct ConvCall {
  Tensor input, weight;
  std::vector<int64_t> stride, padding, dilation;  // (height, width)
  int64_t groups;
  std::vector<int64_t> output_sizes;
  bool channels_last;  // The memory format of the output.
};

// activation(conv2d(input, weight) + bias + residual), and the pre-activation if `keep`.
ProductOutput conv_product(const ConvCall& call, const OptionalTensor& bias, const OptionalTensor& residual,
                           Activation activation, bool keep);

struct ConvGrads {
  Tensor grad_input, grad_weight;
};
// Gradients of the plain convolution, in the memory formats of input and weight.
ConvGrads conv_grads(const ConvCall& call, const Tensor& grad, bool need_input, bool need_weight);

// Whether a tensor of four dimensions lies channels last and not also as NCHW.
bool is_channels_last(const Tensor& tensor);
Tensor empty4(const std::vector<int64_t>& sizes, bool channels_last, ScalarType dtype, const Tensor& like);
// `tensor` in the memory format, itself where it is so already.
Tensor to_format(const Tensor& tensor, bool channels_last);

}  // namespace warpwright
