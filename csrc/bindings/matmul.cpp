// Bindings of the matmul family.

#include "kernels/matmul.h"

#include <algorithm>
#include <iterator>

#include "bindings/gemm.h"

namespace warpwright {

namespace {

// The stride of a dimension of one element is anything; kernels that ask for aligned lines get an aligned one.
int64_t line_stride(const Tensor& operand, int64_t dim) {
  const int64_t size = operand.size(dim), inner = operand.size(dim + 1);
  return size == 1 && operand.stride(dim + 1) == 1 ? (inner + 7) / 8 * 8 : operand.stride(dim);
}

}  // namespace

GemmParams product_params(const BatchView& view) {
  const int64_t lead = view.a.dim() - 2;
  GemmParams params{};
  for (int d = 0; d < kMaxBatchDims; ++d) {
    params.batch[d] = view.size[d];
    params.a_batch[d] = view.a_stride[d];
    params.b_batch[d] = view.b_stride[d];
    params.residual_batch[d] = view.residual_stride[d];
  }
  params.a = view.a.const_data_ptr();
  params.a_row = line_stride(view.a, lead);
  params.a_col = view.a.stride(lead + 1);
  params.b = view.b.const_data_ptr();
  params.b_row = line_stride(view.b, lead);
  params.b_col = view.b.stride(lead + 1);
  params.m = view.a.size(lead);
  params.n = view.b.size(lead);
  params.k = view.a.size(lead + 1);
  params.dtype = to_dtype(view.a.scalar_type());
  return params;
}

GemmParams matrix_params(const Tensor& a, int64_t n, Arithmetic arithmetic) {
  GemmParams params{};
  for (int64_t& size : params.batch) size = 1;
  params.a = a.const_data_ptr();
  params.a_row = a.stride(0);
  params.a_col = a.stride(1);
  params.m = a.size(0);
  params.n = n;
  params.k = a.size(1);
  params.alpha = params.beta = params.output_scale = 1;
  params.dtype = params.output_dtype = to_dtype(a.scalar_type());
  params.precision = arithmetic.precision;
  params.batch_invariant = arithmetic.batch_invariant;
  return params;
}

#if !defined(WARPWRIGHT_BACKEND_CPU)
ProductOutput empty_product(const std::vector<int64_t>& sizes, const Epilogue& epilogue, const Tensor& like) {
  const ScalarType dtype = like.scalar_type();
  return {empty(sizes, epilogue.output_dtype(dtype), like),
          epilogue.keeps_preact(dtype) ? empty(sizes, dtype, like) : nothing(dtype, like)};
}

void set_epilogue(GemmParams& params, const Epilogue& epilogue, const OptionalTensor& bias,
                  const OptionalTensor& residual, const ProductOutput& result) {
  params.bias = data_or_null(bias);
  params.residual = data_or_null(residual);
  if (residual.has_value()) {
    params.residual_row = residual->stride(residual->dim() - 2);
    params.residual_col = residual->stride(residual->dim() - 1);
  }
  params.output = result.output.mutable_data_ptr();
  params.preact = result.preact.numel() > 0 ? result.preact.mutable_data_ptr() : nullptr;
  params.alpha = static_cast<float>(epilogue.alpha);
  params.beta = static_cast<float>(epilogue.beta);
  params.output_scale = static_cast<float>(epilogue.output_scale);
  params.activation = epilogue.activation;
  params.output_dtype = to_dtype(result.output.scalar_type());
}

ProductOutput gemm(const Tensor& a, const Tensor& b, const Epilogue& epilogue, Arithmetic arithmetic) {
  const ProductOutput result = empty_product(output_sizes(a, b.size(b.dim() - 2)), epilogue, a);
  const OptionalTensor bias_row = contiguous(epilogue.bias);
  const BatchView view = batch_view(a, b, epilogue.residual);
  Launch launch(a);
  GemmParams params = product_params(view);
  set_epilogue(params, epilogue, bias_row, view.residual, result);
  params.precision = arithmetic.precision;
  params.batch_invariant = arithmetic.batch_invariant;
  const GemmPlan plan = backend::gemm_plan(params);
  const int64_t count = plan.splits > 1 ? plan.splits * result.output.numel() : 0;
  Tensor partials = empty({count}, ScalarType::Float, a);
  backend::gemm(params, plan, static_cast<float*>(partials.mutable_data_ptr()), launch.stream());
  return result;
}
#endif

BatchView batch_view(const Tensor& a, const Tensor& b, const OptionalTensor& residual) {
  BatchView view{a, b, residual, {1, 1, 1}, {}, {}, {}};
  int count = 0;
  // From the last dimension outwards: a dimension joins the one inside it where every operand allows it.
  for (int64_t d = a.dim() - 3; d >= 0; --d) {
    const int64_t size = a.size(d);
    if (size == 1) continue;
    const int64_t strides[3] = {a.stride(d), b.stride(d), residual.has_value() ? residual->stride(d) : 0};
    const int at = kMaxBatchDims - count;  // The dimension inside, if there is one.
    if (count > 0 && strides[0] == view.a_stride[at] * view.size[at] &&
        strides[1] == view.b_stride[at] * view.size[at] && strides[2] == view.residual_stride[at] * view.size[at]) {
      view.size[at] *= size;
      continue;
    }
    if (count == kMaxBatchDims) {
      return batch_view(torch::stable::contiguous(a), torch::stable::contiguous(b), contiguous(residual));
    }
    ++count;
    view.size[at - 1] = size;
    view.a_stride[at - 1] = strides[0];
    view.b_stride[at - 1] = strides[1];
    view.residual_stride[at - 1] = strides[2];
  }
  return view;
}

Tensor as_matrix(const Tensor& tensor) {
  const int64_t cols = tensor.size(tensor.dim() - 1);
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < tensor.dim(); ++d) rows *= tensor.size(d);
  return tensor.dim() == 2 ? tensor : torch::stable::reshape(tensor, {rows, cols});
}

Tensor swapped(const Tensor& tensor) { return torch::stable::transpose(tensor, tensor.dim() - 2, tensor.dim() - 1); }

std::vector<int64_t> output_sizes(const Tensor& input, int64_t features) {
  std::vector<int64_t> sizes = sizes_of(input);
  sizes.back() = features;
  return sizes;
}

Arithmetic to_arithmetic(const char* op, const std::string& precision, bool batch_invariant) {
  if (precision == "ieee") return {Precision::kIeee, batch_invariant};
  if (precision == "tf32") return {Precision::kTf32, batch_invariant};
  if (precision == "tf32x3") return {Precision::kTf32x3, batch_invariant};
  fail(op, "precision must be one of ieee, tf32, tf32x3, got '", precision, "'");
}

void check_operands(const char* op, const Tensor& input, const char* name, const Tensor& weight) {
  check_float(op, "input", input);
  WARPWRIGHT_CHECK(input.dim() >= 1, op, "input must have at least 1 dimension, got 0");
  WARPWRIGHT_CHECK(weight.dim() == 2, op, name, " must have 2 dimensions, got ", weight.dim());
  check_same_device(op, name, weight, "input", input);
  check_same_dtype(op, name, weight, "input", input);
  WARPWRIGHT_CHECK(weight.size(1) == input.size(input.dim() - 1), op, name, " has ", weight.size(1),
                   " input features, input has ", input.size(input.dim() - 1));
}

void check_bias(const char* op, const char* name, const OptionalTensor& bias, const Tensor& input, int64_t features) {
  if (!bias.has_value()) return;
  check_same_device(op, name, *bias, "input", input);
  check_same_dtype(op, name, *bias, "input", input);
  WARPWRIGHT_CHECK(bias->dim() == 1 && bias->size(0) == features, op, name, " must have shape (", features, ",), got ",
                   shape_text(bias->sizes()));
}

void check_output_like(const char* op, const char* name, const Tensor& tensor, const Tensor& input,
                       const std::vector<int64_t>& sizes) {
  check_same_device(op, name, tensor, "input", input);
  WARPWRIGHT_CHECK(sizes_of(tensor) == sizes, op, name, " must have the shape of the output ",
                   shape_text(IntHeaderOnlyArrayRef(sizes)), ", got ", shape_text(tensor.sizes()));
}

Tensor residual_grad(const Tensor& grad_preact, Activation activation, const std::vector<int64_t>& sizes) {
  // An output may not be an input: without an activation the gradient is copied.
  const bool own = activation != Activation::kNone;
  const Tensor grad = own ? grad_preact : torch::stable::clone(torch::stable::contiguous(grad_preact));
  return sizes.size() == 2 ? grad : torch::stable::view(grad, sizes);
}

namespace {

// ---- linear ----

std::tuple<Tensor, Tensor> linear(Tensor input, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                                  std::string activation, std::string precision, bool batch_invariant,
                                  bool save_preact) {
  const char* op = "linear";
  check_operands(op, input, "weight", weight);
  Epilogue epilogue;
  epilogue.activation = to_activation(op, activation);
  epilogue.save_preact = save_preact;
  check_bias(op, "bias", bias, input, weight.size(0));
  epilogue.bias = bias;
  const std::vector<int64_t> sizes = output_sizes(input, weight.size(0));
  if (residual.has_value()) {
    check_output_like(op, "residual", *residual, input, sizes);
    check_same_dtype(op, "residual", *residual, "input", input);
    epilogue.residual = as_matrix(*residual);
  }
  ProductOutput result = gemm(as_matrix(input), weight, epilogue, to_arithmetic(op, precision, batch_invariant));
  if (input.dim() != 2) {
    result.output = torch::stable::view(result.output, sizes);
    if (epilogue.keeps_preact(input.scalar_type())) result.preact = torch::stable::view(result.preact, sizes);
  }
  return {result.output, result.preact};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_backward(Tensor grad_output, Tensor input, Tensor weight,
                                                           OptionalTensor saved, std::string activation_name,
                                                           std::string precision, bool batch_invariant, bool need_input,
                                                           bool need_weight, bool need_bias, bool need_residual) {
  const char* op = "linear_backward";
  check_operands(op, input, "weight", weight);
  const Activation activation = to_activation(op, activation_name);
  const Arithmetic arithmetic = to_arithmetic(op, precision, batch_invariant);
  const std::vector<int64_t> sizes = output_sizes(input, weight.size(0));
  check_output_like(op, "grad_output", grad_output, input, sizes);
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  check_saved(op, saved, activation, grad_output);
  if (saved.has_value()) saved = as_matrix(*saved);

  const ScalarType dtype = input.scalar_type();
  const bool need_preact = need_input || need_weight || need_residual;
  const EpilogueGrads grads =
      epilogue_grads(as_matrix(grad_output), saved, activation, weight.size(0), false, need_preact, need_bias);
  const Tensor& grad = grads.grad_preact;  // (m, n)
  Tensor grad_input = nothing(dtype, input), grad_weight = nothing(dtype, input), grad_residual = nothing(dtype, input);
  if (need_input) {
    grad_input = gemm(grad, swapped(weight), {}, arithmetic).output;
    if (input.dim() != 2) grad_input = torch::stable::view(grad_input, sizes_of(input));
  }
  if (need_weight) grad_weight = gemm(swapped(grad), swapped(as_matrix(input)), {}, arithmetic).output;
  if (need_residual) grad_residual = residual_grad(grad, activation, sizes);
  return {grad_input, grad_weight, grads.grad_bias, grad_residual};
}

// ---- matmul ----

void check_matmul(const char* op, const Tensor& input, const Tensor& other) {
  check_float(op, "input", input);
  WARPWRIGHT_CHECK(input.dim() >= 2, op, "input must have at least 2 dimensions, got ", input.dim());
  WARPWRIGHT_CHECK(other.dim() == input.dim(), op, "other must have as many dimensions as input (", input.dim(),
                   "), got ", other.dim());
  check_same_device(op, "other", other, "input", input);
  check_same_dtype(op, "other", other, "input", input);
  const int64_t lead = input.dim() - 2;
  WARPWRIGHT_CHECK(other.size(lead) == input.size(lead + 1), op, "other has ", other.size(lead), " rows, input has ",
                   input.size(lead + 1), " columns");
  for (int64_t d = 0; d < lead; ++d) {
    WARPWRIGHT_CHECK(other.size(d) == input.size(d), op, "other must have the batch of input ",
                     shape_text(input.sizes()), ", got ", shape_text(other.sizes()));
  }
}

// What an output may be stored as: a float of any width, of what was computed in float32.
void check_out_dtype(const char* op, std::optional<ScalarType> out_dtype, ScalarType dtype) {
  if (!out_dtype.has_value() || *out_dtype == dtype) return;
  const ScalarType known[] = {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Float8_e4m3fn,
                              ScalarType::Float8_e5m2};
  const bool fits = std::find(std::begin(known), std::end(known), *out_dtype) != std::end(known);
  WARPWRIGHT_CHECK(fits && dtype != ScalarType::Double, op,
                   "out_dtype must be input's dtype or, unless that is float64, float32, float16, bfloat16, "
                   "float8_e4m3fn or float8_e5m2, got ",
                   dtype_name(*out_dtype));
}

std::tuple<Tensor, Tensor> matmul(Tensor input, Tensor other, OptionalTensor bias, OptionalTensor residual,
                                  double alpha, double beta, std::string activation, double output_scale,
                                  std::optional<ScalarType> out_dtype, std::string precision, bool batch_invariant,
                                  bool save_preact) {
  const char* op = "matmul";
  check_matmul(op, input, other);
  const int64_t features = other.size(other.dim() - 1);
  check_bias(op, "bias", bias, input, features);
  if (residual.has_value()) {
    check_output_like(op, "residual", *residual, input, output_sizes(input, features));
    check_same_dtype(op, "residual", *residual, "input", input);
  }
  check_out_dtype(op, out_dtype, input.scalar_type());
  const Epilogue epilogue{bias,      residual,   alpha, beta, output_scale, to_activation(op, activation),
                          out_dtype, save_preact};
  ProductOutput result = gemm(input, swapped(other), epilogue, to_arithmetic(op, precision, batch_invariant));
  return {result.output, result.preact};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> matmul_backward(Tensor grad_output, Tensor input, Tensor other,
                                                           OptionalTensor saved, double alpha, double beta,
                                                           std::string activation_name, double output_scale,
                                                           std::string precision, bool batch_invariant, bool need_input,
                                                           bool need_other, bool need_bias, bool need_residual) {
  const char* op = "matmul_backward";
  check_matmul(op, input, other);
  const Activation activation = to_activation(op, activation_name);
  const Arithmetic arithmetic = to_arithmetic(op, precision, batch_invariant);
  const int64_t features = other.size(other.dim() - 1);
  check_output_like(op, "grad_output", grad_output, input, output_sizes(input, features));
  const ScalarType dtype = input.scalar_type();
  if (grad_output.scalar_type() != dtype) grad_output = torch::stable::to(grad_output, dtype);
  check_saved(op, saved, activation, grad_output);

  const EpilogueGrads grads = epilogue_grads(grad_output, saved, activation, features, false, need_input || need_other,
                                             need_bias, output_scale);
  Tensor grad_input = nothing(dtype, input), grad_other = nothing(dtype, input), grad_residual = nothing(dtype, input);
  Epilogue scaled;
  scaled.alpha = alpha;
  if (need_input) grad_input = gemm(grads.grad_preact, other, scaled, arithmetic).output;
  if (need_other) grad_other = gemm(swapped(input), swapped(grads.grad_preact), scaled, arithmetic).output;
  if (need_residual) {
    grad_residual =
        epilogue_grads(grad_output, saved, activation, features, false, true, false, output_scale * beta).grad_preact;
    // An output may not be an input: with nothing to do the gradient is copied.
    const bool own = activation != Activation::kNone || output_scale * beta != 1;
    if (!own) grad_residual = torch::stable::clone(torch::stable::contiguous(grad_residual));
  }
  return {grad_input, grad_other, grads.grad_bias, grad_residual};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
  m.impl("matmul", TORCH_BOX(&matmul));
  m.impl("matmul_backward", TORCH_BOX(&matmul_backward));
}

}  // namespace warpwright
