// Bindings of the sparse family.

#include "kernels/sparse.h"

#include "bindings/gemm.h"

namespace warpwright {
namespace {

#if defined(WARPWRIGHT_BACKEND_CPU)
// Rows of the input up to which the weight is multiplied as it lies; for more the dense weight is written once, and the
// product is oneDNN's. Not measured yet.
constexpr int64_t kFewRows = 8;
#endif

// ---- the weight ----

// `like` is what the metadata go with, k columns of it when it is dense.
void check_metadata(const char* op, const Tensor& metadata, const char* like_name, const Tensor& like, int64_t k) {
  check_same_device(op, "metadata", metadata, like_name, like);
  WARPWRIGHT_CHECK(metadata.scalar_type() == ScalarType::Byte, op, "metadata must be torch.uint8, got ",
                   dtype_name(metadata.scalar_type()));
  const std::vector<int64_t> expected = {like.size(0), (k + 7) / 8};
  WARPWRIGHT_CHECK(sizes_of(metadata) == expected, op, "metadata must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(expected)), ", got ", shape_text(metadata.sizes()));
}

void check_weight(const char* op, const Tensor& values, const Tensor& metadata) {
  WARPWRIGHT_CHECK(values.dim() == 2 && values.size(1) % 2 == 0, op,
                   "values must have 2 dimensions and an even number of columns, got ", shape_text(values.sizes()));
  check_metadata(op, metadata, "values", values, 2 * values.size(1));
}

// The weight that a kernel reads where it lies; `values` may be missing.
Sparse24 sparse24_of(const OptionalTensor& values, const Tensor& metadata) {
  Sparse24 weight{};
  if (values.has_value()) {
    weight.values = values->const_data_ptr();
    weight.values_row = values->stride(0);
    weight.values_col = values->stride(1);
  }
  weight.metadata = static_cast<const uint8_t*>(metadata.const_data_ptr());
  weight.metadata_row = metadata.stride(0);
  weight.metadata_col = metadata.stride(1);
  return weight;
}

std::tuple<Tensor, Tensor> prune_24(Tensor weight) {
  const char* op = "prune_24";
  check_float(op, "weight", weight);
  WARPWRIGHT_CHECK(weight.dim() == 2 && weight.size(1) % 4 == 0, op,
                   "weight must have 2 dimensions and a multiple of 4 columns, got ", shape_text(weight.sizes()));
  const int64_t n = weight.size(0), k = weight.size(1);
  Tensor values = empty({n, k / 2}, weight.scalar_type(), weight);
  Tensor metadata = empty({n, (k + 7) / 8}, ScalarType::Byte, weight);
  Prune24Params params{};
  params.weight = weight.const_data_ptr();
  params.weight_row = weight.stride(0);
  params.weight_col = weight.stride(1);
  params.values = values.mutable_data_ptr();
  params.metadata = static_cast<uint8_t*>(metadata.mutable_data_ptr());
  params.n = n;
  params.k = k;
  params.dtype = to_dtype(weight.scalar_type());
  Launch launch(weight);
  backend::prune_24(params, launch.stream());
  return {values, metadata};
}

// (n, k), checked before.
Tensor to_dense(const Tensor& values, const Tensor& metadata) {
  const int64_t n = values.size(0), k = 2 * values.size(1);
  Tensor dense = empty({n, k}, values.scalar_type(), values);
  DenseFromSparse24Params params{};
  params.weight = sparse24_of(values, metadata);
  params.dense = dense.mutable_data_ptr();
  params.n = n;
  params.k = k;
  params.dtype = to_dtype(values.scalar_type());
  Launch launch(values);
  backend::dense_from_sparse24(params, launch.stream());
  return dense;
}

Tensor dense_from_sparse24(Tensor values, Tensor metadata) {
  const char* op = "dense_from_sparse24";
  check_float(op, "values", values);
  check_weight(op, values, metadata);
  return to_dense(values, metadata);
}

// What of a dense (n, k) gradient belongs to the kept elements; checked before.
Tensor kept_of(const Tensor& grad_output, const Tensor& metadata) {
  const int64_t n = grad_output.size(0), k = grad_output.size(1);
  Tensor grad_values = empty({n, k / 2}, grad_output.scalar_type(), grad_output);
  DenseFromSparse24BackwardParams params{};
  params.grad_output = grad_output.const_data_ptr();
  params.grad_row = grad_output.stride(0);
  params.grad_col = grad_output.stride(1);
  params.weight = sparse24_of(std::nullopt, metadata);
  params.grad_values = grad_values.mutable_data_ptr();
  params.n = n;
  params.k = k;
  params.dtype = to_dtype(grad_output.scalar_type());
  Launch launch(grad_output);
  backend::dense_from_sparse24_backward(params, launch.stream());
  return grad_values;
}

Tensor dense_from_sparse24_backward(Tensor grad_output, Tensor metadata) {
  const char* op = "dense_from_sparse24_backward";
  check_float(op, "grad_output", grad_output);
  WARPWRIGHT_CHECK(grad_output.dim() == 2 && grad_output.size(1) % 4 == 0, op,
                   "grad_output must have 2 dimensions and a multiple of 4 columns, got ",
                   shape_text(grad_output.sizes()));
  check_metadata(op, metadata, "grad_output", grad_output, grad_output.size(1));
  return kept_of(grad_output, metadata);
}

// ---- linear ----

void check_linear(const char* op, const Tensor& input, const Tensor& values, const Tensor& metadata) {
  check_float(op, "input", input);
  WARPWRIGHT_CHECK(input.dim() >= 1, op, "input must have at least 1 dimension, got 0");
  check_same_device(op, "values", values, "input", input);
  check_same_dtype(op, "values", values, "input", input);
  check_weight(op, values, metadata);
  WARPWRIGHT_CHECK(2 * values.size(1) == input.size(input.dim() - 1), op, "weight has ", 2 * values.size(1),
                   " input features, input has ", input.size(input.dim() - 1));
}

// activation(a @ weight.T + bias + residual), for a (m, k).
ProductOutput sparse24_product(const Tensor& a, const Tensor& values, const Tensor& metadata, const Epilogue& epilogue,
                               Arithmetic arithmetic) {
  const std::vector<int64_t> sizes = {a.size(0), values.size(0)};
  LinearSparse24Params params{};
  params.gemm = matrix_params(a, values.size(0), arithmetic);
  params.weight = sparse24_of(values, metadata);
#if defined(WARPWRIGHT_BACKEND_CPU)
  if (a.size(0) > kFewRows || arithmetic.batch_invariant) {
    return gemm(a, to_dense(values, metadata), epilogue, arithmetic);
  }
  const Tensor sums = empty(sizes, acc_dtype(a.scalar_type()), a);
  params.gemm.output = sums.mutable_data_ptr();
  params.gemm.output_dtype = to_dtype(sums.scalar_type());
  backend::linear_sparse24(params, nullptr);
  return finish_product(sums, epilogue, a.scalar_type(), /*bias_is_in=*/false);
#else
  const ProductOutput result = empty_product(sizes, epilogue, a);
  const OptionalTensor bias = contiguous(epilogue.bias);
  set_epilogue(params.gemm, epilogue, bias, epilogue.residual, result);
  Launch launch(a);
  backend::linear_sparse24(params, launch.stream());
  return result;
#endif
}

std::tuple<Tensor, Tensor> linear_sparse24(Tensor input, Tensor values, Tensor metadata, OptionalTensor bias,
                                           OptionalTensor residual, std::string activation, std::string precision,
                                           bool batch_invariant, bool save_preact) {
  const char* op = "linear_sparse24";
  check_linear(op, input, values, metadata);
  Epilogue epilogue;
  epilogue.activation = to_activation(op, activation);
  epilogue.save_preact = save_preact;
  check_bias(op, "bias", bias, input, values.size(0));
  epilogue.bias = bias;
  const std::vector<int64_t> sizes = output_sizes(input, values.size(0));
  if (residual.has_value()) {
    check_output_like(op, "residual", *residual, input, sizes);
    check_same_dtype(op, "residual", *residual, "input", input);
    epilogue.residual = as_matrix(*residual);
  }
  ProductOutput result =
      sparse24_product(as_matrix(input), values, metadata, epilogue, to_arithmetic(op, precision, batch_invariant));
  if (input.dim() != 2) {
    result.output = torch::stable::view(result.output, sizes);
    if (epilogue.keeps_preact(input.scalar_type())) result.preact = torch::stable::view(result.preact, sizes);
  }
  return {result.output, result.preact};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_sparse24_backward(Tensor grad_output, Tensor input, Tensor values,
                                                                    Tensor metadata, OptionalTensor saved,
                                                                    std::string activation_name, std::string precision,
                                                                    bool batch_invariant, bool need_input,
                                                                    bool need_values, bool need_bias,
                                                                    bool need_residual) {
  const char* op = "linear_sparse24_backward";
  check_linear(op, input, values, metadata);
  const Activation activation = to_activation(op, activation_name);
  const Arithmetic arithmetic = to_arithmetic(op, precision, batch_invariant);
  const std::vector<int64_t> sizes = output_sizes(input, values.size(0));
  check_output_like(op, "grad_output", grad_output, input, sizes);
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  check_saved(op, saved, activation, grad_output);
  if (saved.has_value()) saved = as_matrix(*saved);

  const ScalarType dtype = input.scalar_type();
  const bool need_preact = need_input || need_values || need_residual;
  const EpilogueGrads grads =
      epilogue_grads(as_matrix(grad_output), saved, activation, values.size(0), false, need_preact, need_bias);
  const Tensor& grad = grads.grad_preact;  // (m, n)
  Tensor grad_input = nothing(dtype, input), grad_values = nothing(dtype, input), grad_residual = nothing(dtype, input);
  if (need_input) {
    grad_input = gemm(grad, swapped(to_dense(values, metadata)), {}, arithmetic).output;
    if (input.dim() != 2) grad_input = torch::stable::view(grad_input, sizes_of(input));
  }
  if (need_values) {
    const Tensor dense = gemm(swapped(grad), swapped(as_matrix(input)), {}, arithmetic).output;
    grad_values = kept_of(dense, metadata);
  }
  if (need_residual) grad_residual = residual_grad(grad, activation, sizes);
  return {grad_input, grad_values, grads.grad_bias, grad_residual};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("prune_24", TORCH_BOX(&prune_24));
  m.impl("dense_from_sparse24", TORCH_BOX(&dense_from_sparse24));
  m.impl("dense_from_sparse24_backward", TORCH_BOX(&dense_from_sparse24_backward));
  m.impl("linear_sparse24", TORCH_BOX(&linear_sparse24));
  m.impl("linear_sparse24_backward", TORCH_BOX(&linear_sparse24_backward));
}

}  // namespace warpwright
