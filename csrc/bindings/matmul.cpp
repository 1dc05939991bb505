// Bindings of the matmul family.

#include "kernels/matmul.h"

#include "bindings/gemm.h"

namespace warpwright {

#if !defined(WARPWRIGHT_BACKEND_CPU)
LinearOutput gemm(const Tensor& a, const Tensor& b, const OptionalTensor& bias, const OptionalTensor& residual,
                  Activation activation, bool save_preact) {
  const ScalarType dtype = a.scalar_type();
  const bool keep = save_preact && needs_preact(activation);
  LinearOutput result{empty({a.size(0), b.size(0)}, dtype, a),
                      keep ? empty({a.size(0), b.size(0)}, dtype, a) : nothing(dtype, a)};
  const OptionalTensor bias_row = contiguous(bias);
  Launch launch(a);
  GemmParams params{};
  params.a = a.const_data_ptr();
  params.a_row = a.stride(0);
  params.a_col = a.stride(1);
  params.b = b.const_data_ptr();
  params.b_row = b.stride(0);
  params.b_col = b.stride(1);
  params.bias = data_or_null(bias_row);
  params.residual = data_or_null(residual);
  if (residual.has_value()) {
    params.residual_row = residual->stride(0);
    params.residual_col = residual->stride(1);
  }
  params.output = result.output.mutable_data_ptr();
  params.preact = keep ? result.preact.mutable_data_ptr() : nullptr;
  params.m = a.size(0);
  params.n = b.size(0);
  params.k = a.size(1);
  params.activation = activation;
  params.dtype = to_dtype(dtype);
  backend::gemm(params, launch.stream());
  return result;
}
#endif

namespace {

// The leading dimensions as one: a view where the strides allow it.
Tensor as_matrix(const Tensor& tensor) {
  const int64_t cols = tensor.size(tensor.dim() - 1);
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < tensor.dim(); ++d) rows *= tensor.size(d);
  return tensor.dim() == 2 ? tensor : torch::stable::reshape(tensor, {rows, cols});
}

std::vector<int64_t> output_sizes(const Tensor& input, int64_t features) {
  std::vector<int64_t> sizes = sizes_of(input);
  sizes.back() = features;
  return sizes;
}

void check_operands(const char* op, const Tensor& input, const Tensor& weight) {
  check_float(op, "input", input);
  WARPWRIGHT_CHECK(input.dim() >= 1, op, "input must have at least 1 dimension, got 0");
  WARPWRIGHT_CHECK(weight.dim() == 2, op, "weight must have 2 dimensions, got ", weight.dim());
  check_same_device(op, "weight", weight, "input", input);
  check_same_dtype(op, "weight", weight, "input", input);
  WARPWRIGHT_CHECK(weight.size(1) == input.size(input.dim() - 1), op, "weight has ", weight.size(1),
                   " input features, input has ", input.size(input.dim() - 1));
}

std::tuple<Tensor, Tensor> linear(Tensor input, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                                  std::string activation_name, bool save_preact) {
  const char* op = "linear";
  check_operands(op, input, weight);
  const Activation activation = to_activation(op, activation_name);
  const int64_t features = weight.size(0);
  if (bias.has_value()) {
    check_same_device(op, "bias", *bias, "input", input);
    check_same_dtype(op, "bias", *bias, "input", input);
    WARPWRIGHT_CHECK(bias->dim() == 1 && bias->size(0) == features, op, "bias must have shape (", features, ",), got ",
                     shape_text(bias->sizes()));
  }
  const std::vector<int64_t> sizes = output_sizes(input, features);
  if (residual.has_value()) {
    check_same_device(op, "residual", *residual, "input", input);
    check_same_dtype(op, "residual", *residual, "input", input);
    WARPWRIGHT_CHECK(sizes_of(*residual) == sizes, op, "residual must have the shape of the output ",
                     shape_text(IntHeaderOnlyArrayRef(sizes)), ", got ", shape_text(residual->sizes()));
    residual = as_matrix(*residual);
  }
  LinearOutput result = gemm(as_matrix(input), weight, bias, residual, activation, save_preact);
  const bool kept = save_preact && needs_preact(activation);
  if (input.dim() != 2) {
    result.output = torch::stable::view(result.output, sizes);
    if (kept) result.preact = torch::stable::view(result.preact, sizes);
  }
  return {result.output, result.preact};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_backward(Tensor grad_output, Tensor input, Tensor weight,
                                                           OptionalTensor saved, std::string activation_name,
                                                           bool need_input, bool need_weight, bool need_bias,
                                                           bool need_residual) {
  const char* op = "linear_backward";
  check_operands(op, input, weight);
  const Activation activation = to_activation(op, activation_name);
  const std::vector<int64_t> sizes = output_sizes(input, weight.size(0));
  check_same_device(op, "grad_output", grad_output, "input", input);
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  WARPWRIGHT_CHECK(sizes_of(grad_output) == sizes, op, "grad_output must have the shape of the output ",
                   shape_text(IntHeaderOnlyArrayRef(sizes)), ", got ", shape_text(grad_output.sizes()));
  check_saved(op, saved, activation, grad_output);
  if (saved.has_value()) saved = as_matrix(*saved);

  const ScalarType dtype = input.scalar_type();
  const bool need_preact = need_input || need_weight || need_residual;
  const EpilogueGrads grads =
      epilogue_grads(as_matrix(grad_output), saved, activation, weight.size(0), false, need_preact, need_bias);
  const Tensor& grad = grads.grad_preact;  // (m, n)
  Tensor grad_input = nothing(dtype, input), grad_weight = nothing(dtype, input), grad_residual = nothing(dtype, input);
  if (need_input) {
    const Tensor weight_t = torch::stable::transpose(weight, 0, 1);
    grad_input = gemm(grad, weight_t, std::nullopt, std::nullopt, Activation::kNone, false).output;
    if (input.dim() != 2) grad_input = torch::stable::view(grad_input, sizes_of(input));
  }
  if (need_weight) {
    const Tensor grad_t = torch::stable::transpose(grad, 0, 1);
    const Tensor input_t = torch::stable::transpose(as_matrix(input), 0, 1);
    grad_weight = gemm(grad_t, input_t, std::nullopt, std::nullopt, Activation::kNone, false).output;
  }
  if (need_residual) {
    // An output may not be an input: without an activation the gradient is copied.
    const bool own = activation != Activation::kNone;
    grad_residual = own ? grad : torch::stable::clone(torch::stable::contiguous(grad));
    if (input.dim() != 2) grad_residual = torch::stable::view(grad_residual, sizes);
  }
  return {grad_input, grad_weight, grads.grad_bias, grad_residual};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
}

}  // namespace warpwright
