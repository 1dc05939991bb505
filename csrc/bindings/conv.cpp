// Bindings of the convolution family.

#include "bindings/conv.h"

#include "kernels/conv.h"

namespace warpwright {

bool is_channels_last(const Tensor& tensor) {
  if (tensor.is_contiguous()) return false;
  int64_t expected = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (tensor.size(d) == 1) continue;
    if (tensor.stride(d) != expected) return false;
    expected *= tensor.size(d);
  }
  return true;
}

Tensor empty4(const std::vector<int64_t>& sizes, bool channels_last, ScalarType dtype, const Tensor& like) {
  if (!channels_last) return empty(sizes, dtype, like);
  std::vector<int64_t> strides(4);
  int64_t stride = 1;
  for (size_t d : {1, 3, 2, 0}) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  return empty_strided(sizes, strides, dtype, like);
}

Tensor to_format(const Tensor& tensor, bool channels_last) {
  if (channels_last ? is_channels_last(tensor) : tensor.is_contiguous()) return tensor;
  Tensor moved = empty4(sizes_of(tensor), channels_last, tensor.scalar_type(), tensor);
  torch::stable::copy_(moved, tensor);
  return moved;
}

#if !defined(WARPWRIGHT_BACKEND_CPU)
namespace {

Tensor4 as_tensor4(const Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()),
          {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)}};
}

Conv2dParams params_of(const ConvCall& call, const Tensor& input, const Tensor& weight, const Tensor& output) {
  Conv2dParams params{};
  params.input = as_tensor4(input);
  params.weight = as_tensor4(weight);
  params.output = as_tensor4(output);
  params.batch = input.size(0);
  params.channels = input.size(1);
  params.height = input.size(2);
  params.width = input.size(3);
  params.filters = weight.size(0);
  params.kernel_h = weight.size(2);
  params.kernel_w = weight.size(3);
  params.out_height = output.size(2);
  params.out_width = output.size(3);
  params.stride_h = call.stride[0];
  params.stride_w = call.stride[1];
  params.padding_h = call.padding[0];
  params.padding_w = call.padding[1];
  params.dilation_h = call.dilation[0];
  params.dilation_w = call.dilation[1];
  params.groups = call.groups;
  params.dtype = to_dtype(input.scalar_type());
  return params;
}

}  // namespace

ProductOutput conv_product(const ConvCall& call, const OptionalTensor& bias, const OptionalTensor& residual,
                           Activation activation, bool keep) {
  const ScalarType dtype = call.input.scalar_type();
  ProductOutput result{
      empty4(call.output_sizes, call.channels_last, dtype, call.input),
      keep ? empty4(call.output_sizes, call.channels_last, dtype, call.input) : nothing(dtype, call.input)};
  const OptionalTensor bias_row = contiguous(bias);
  Conv2dParams params = params_of(call, call.input, call.weight, result.output);
  if (residual.has_value()) params.residual = as_tensor4(*residual);
  params.bias = data_or_null(bias_row);
  params.preact = keep ? result.preact.mutable_data_ptr() : nullptr;
  params.activation = activation;
  Launch launch(call.input);
  backend::conv_forward(params, launch.stream());
  return result;
}

ConvGrads conv_grads(const ConvCall& call, const Tensor& grad, bool need_input, bool need_weight) {
  const ScalarType dtype = grad.scalar_type();
  ConvGrads grads{nothing(dtype, grad), nothing(dtype, grad)};
  Launch launch(grad);
  if (need_input) {
    grads.grad_input = empty4(sizes_of(call.input), is_channels_last(call.input), dtype, grad);
    backend::conv_input_grad(params_of(call, grads.grad_input, call.weight, grad), launch.stream());
  }
  if (need_weight) {
    grads.grad_weight = empty4(sizes_of(call.weight), is_channels_last(call.weight), dtype, grad);
    backend::conv_weight_grad(params_of(call, call.input, grads.grad_weight, grad), launch.stream());
  }
  return grads;
}
#endif

namespace {

void check_pair(const char* op, const char* name, const std::vector<int64_t>& values, int64_t least) {
  const IntHeaderOnlyArrayRef list(values);
  WARPWRIGHT_CHECK(values.size() == 2, op, name, " must have 2 values, got ", shape_text(list));
  WARPWRIGHT_CHECK(values[0] >= least && values[1] >= least, op, name, " must be at least ", least, ", got ",
                   shape_text(list));
}

ConvCall check_call(const char* op, const Tensor& input, const Tensor& weight, const std::vector<int64_t>& stride,
                    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups) {
  check_float(op, "input", input);
  WARPWRIGHT_CHECK(input.dim() == 4, op, "input must have 4 dimensions (batch, channels, height, width), got ",
                   input.dim());
  WARPWRIGHT_CHECK(weight.dim() == 4, op, "weight must have 4 dimensions, got ", weight.dim());
  check_same_device(op, "weight", weight, "input", input);
  check_same_dtype(op, "weight", weight, "input", input);
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
  const int64_t channels = input.size(1), filters = weight.size(0);
  WARPWRIGHT_CHECK(groups >= 1 && channels % groups == 0 && filters % groups == 0, op, "groups must divide ", channels,
                   " input channels and ", filters, " filters, got ", groups);
  WARPWRIGHT_CHECK(weight.size(1) == channels / groups, op, "weight has ", weight.size(1),
                   " channels a group, input has ", channels / groups);
  ConvCall call{input,
                weight,
                stride,
                padding,
                dilation,
                groups,
                {input.size(0), filters, 0, 0},
                is_channels_last(input) || is_channels_last(weight)};
  for (int64_t d = 0; d < 2; ++d) {
    const int64_t padded = input.size(2 + d) + 2 * padding[d];
    const int64_t reach = dilation[d] * (weight.size(2 + d) - 1) + 1;
    WARPWRIGHT_CHECK(weight.size(2 + d) >= 1 && padded >= reach, op, "weight reaches over ", reach,
                     " input elements, input with its padding has ", padded);
    call.output_sizes[2 + d] = (padded - reach) / stride[d] + 1;
  }
  return call;
}

void check_output_like(const char* op, const char* name, const Tensor& tensor, const ConvCall& call) {
  check_same_device(op, name, tensor, "input", call.input);
  check_same_dtype(op, name, tensor, "input", call.input);
  WARPWRIGHT_CHECK(sizes_of(tensor) == call.output_sizes, op, name, " must have the shape of the output ",
                   shape_text(IntHeaderOnlyArrayRef(call.output_sizes)), ", got ", shape_text(tensor.sizes()));
}

std::tuple<Tensor, Tensor> conv2d(Tensor input, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                                  std::vector<int64_t> stride, std::vector<int64_t> padding,
                                  std::vector<int64_t> dilation, int64_t groups, std::string activation_name,
                                  bool save_preact) {
  const char* op = "conv2d";
  const ConvCall call = check_call(op, input, weight, stride, padding, dilation, groups);
  const Activation activation = to_activation(op, activation_name);
  if (bias.has_value()) {
    check_same_device(op, "bias", *bias, "input", input);
    check_same_dtype(op, "bias", *bias, "input", input);
    WARPWRIGHT_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), op, "bias must have shape (", weight.size(0),
                     ",), got ", shape_text(bias->sizes()));
  }
  if (residual.has_value()) check_output_like(op, "residual", *residual, call);
  ProductOutput result = conv_product(call, bias, residual, activation, save_preact && needs_preact(activation));
  return {result.output, result.preact};
}

// (batch, channels, height, width) as the epilogue's rows: (batch * height * width, channels) when channels come last,
// else (batch * channels, height * width). A view where the strides allow it.
Tensor as_rows(const Tensor& tensor, bool channels_last) {
  const int64_t n = tensor.size(0), c = tensor.size(1), h = tensor.size(2), w = tensor.size(3);
  if (!channels_last) return torch::stable::reshape(tensor, {n * c, h * w});
  return torch::stable::reshape(torch::stable::transpose(torch::stable::transpose(tensor, 1, 2), 2, 3), {n * h * w, c});
}

Tensor from_rows(const Tensor& rows, const std::vector<int64_t>& sizes, bool channels_last) {
  if (!channels_last) return torch::stable::view(rows, sizes);
  const Tensor nhwc = torch::stable::view(rows, {sizes[0], sizes[2], sizes[3], sizes[1]});
  return torch::stable::transpose(torch::stable::transpose(nhwc, 2, 3), 1, 2);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv2d_backward(Tensor grad_output, Tensor input, Tensor weight,
                                                           OptionalTensor saved, std::vector<int64_t> stride,
                                                           std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                                           int64_t groups, std::string activation_name, bool need_input,
                                                           bool need_weight, bool need_bias, bool need_residual) {
  const char* op = "conv2d_backward";
  const ConvCall call = check_call(op, input, weight, stride, padding, dilation, groups);
  const Activation activation = to_activation(op, activation_name);
  check_output_like(op, "grad_output", grad_output, call);
  check_saved(op, saved, activation, grad_output);

  const ScalarType dtype = input.scalar_type();
  Tensor grad = grad_output, grad_bias = nothing(dtype, input), grad_residual = nothing(dtype, input);
  if (activation != Activation::kNone || need_bias) {
    if (saved.has_value()) saved = as_rows(*saved, call.channels_last);
    const bool need_preact = need_input || need_weight || need_residual;
    const EpilogueGrads grads = epilogue_grads(as_rows(grad_output, call.channels_last), saved, activation,
                                               weight.size(0), !call.channels_last, need_preact, need_bias);
    grad_bias = grads.grad_bias;
    if (activation != Activation::kNone) grad = from_rows(grads.grad_preact, call.output_sizes, call.channels_last);
  }
  if (need_residual) {
    grad_residual = empty4(call.output_sizes, call.channels_last, dtype, input);
    torch::stable::copy_(grad_residual, grad);
  }
  ConvGrads grads = conv_grads(call, grad, need_input, need_weight);
  return {grads.grad_input, grads.grad_weight, grad_bias, grad_residual};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("conv2d_backward", TORCH_BOX(&conv2d_backward));
}

}  // namespace warpwright
