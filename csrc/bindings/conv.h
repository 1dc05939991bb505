// What the convolution bindings ask of a backend. bindings/conv.cpp defines it for CUDA and the emulator,
// bindings/onednn/conv.cpp for the CPU.

#pragma once

#include "bindings/channel_norm.h"
#include "bindings/gemm.h"
#include "kernels/conv.h"

namespace warpwright {

// The arguments of a convolution, checked; each list has a number for each dimension.
struct ConvCall {
  Tensor input, weight;
  std::vector<int64_t> stride, padding, padding_after, dilation, output_padding;
  bool transposed;
  int64_t groups;
  std::vector<int64_t> output_sizes;
  bool channels_last;  // The memory format of the output.
  Precision precision = Precision::kIeee;

  size_t dims() const { return stride.size(); }
  // Elements of a channel of the output.
  int64_t output_pixels() const;
};

// What the schemas have between the tensors and the activation.
struct ConvGeometry {
  std::vector<int64_t> stride, padding, dilation;
  bool transposed;
  std::vector<int64_t> output_padding;
  int64_t groups;
};
// "conv2d_backward", "conv_transpose1d": what the user called, as far as the arguments tell.
std::string conv_name(const Tensor& weight, bool transposed, const char* suffix);
ConvCall check_conv(const char* op, const Tensor& input, const Tensor& weight, const ConvGeometry& geometry,
                    const std::string& precision);
// The same for tensors of any dtypes.
ConvCall check_conv_shapes(const char* op, const Tensor& input, const Tensor& weight, const ConvGeometry& geometry);
void check_conv_output(const char* op, const char* name, const Tensor& tensor, const ConvCall& call);

ConvTensor as_conv_tensor(const Tensor& tensor);
// For tensors in the roles of the call: `input` and `output` are its input and output, or gradients of theirs.
ConvParams conv_params(const ConvCall& call, const Tensor& input, const Tensor& weight, const Tensor& output);

// activation(convolution + bias + residual), and the pre-activation if `keep`. Where the kernel of a plain convolution
// finds the statistics of its output on the way, as it does on the tensor cores, they are left in `found`.
ProductOutput conv_product(const ConvCall& call, const OptionalTensor& bias, const OptionalTensor& residual,
                           Activation activation, bool keep, SlabStatistics* found = nullptr);

// activation(batch_norm(convolution + bias) + residual) with constant statistics, by the convolution's kernel alone;
// nothing where the backend's has no such epilogue.
std::optional<Tensor> conv_normalized(const ConvCall& call, const OptionalTensor& bias, const OptionalTensor& residual,
                                      const Affine& affine, const Running& running, double eps, Activation activation);

struct ConvGrads {
  Tensor grad_input, grad_weight;
  OptionalTensor grad_bias = {};  // Where the weight's gradient is found by a kernel that finds it on the way.
};
// Gradients of the plain convolution, in the memory formats of input and weight.
ConvGrads conv_grads(const ConvCall& call, const Tensor& grad, bool need_input, bool need_weight,
                     bool need_bias = false);

// Whether a tensor lies channels last, (batch, *sizes, channels), and not also channels first.
bool is_channels_last(const Tensor& tensor);
Tensor empty_in_format(const std::vector<int64_t>& sizes, bool channels_last, ScalarType dtype, const Tensor& like);
// `tensor` in the memory format, itself where it is so already.
Tensor to_format(const Tensor& tensor, bool channels_last);

}  // namespace warpwright
