// Bindings of the norm family.

#include "kernels/norm.h"

#include "bindings/common.h"

namespace warpwright {
namespace {

struct Extent {
  int64_t rows = 1, cols = 1;
};

Extent extent_of(const char* op, const Tensor& input, int64_t normalized_ndim) {
  WARPWRIGHT_CHECK(normalized_ndim >= 1 && normalized_ndim <= input.dim(), op,
                   "normalized_shape must have between 1 and input.dim() = ", input.dim(), " dimensions, got ",
                   normalized_ndim);
  Extent extent;
  for (int64_t d = 0; d < input.dim(); ++d) {
    (d < input.dim() - normalized_ndim ? extent.rows : extent.cols) *= input.size(d);
  }
  return extent;
}

std::vector<int64_t> leading_sizes(const Tensor& input, int64_t normalized_ndim) {
  return {input.sizes().begin(), input.sizes().end() - normalized_ndim};
}

void check_affine(const char* op, const char* name, const OptionalTensor& tensor, const Tensor& input,
                  int64_t normalized_ndim) {
  if (!tensor.has_value()) return;
  check_same_device(op, name, *tensor, "input", input);
  check_same_dtype(op, name, *tensor, "input", input);
  const std::vector<int64_t> expected(input.sizes().end() - normalized_ndim, input.sizes().end());
  WARPWRIGHT_CHECK(sizes_of(*tensor) == expected, op, name, " must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(expected)), ", got ", shape_text(tensor->sizes()));
}

std::tuple<Tensor, Tensor, Tensor> rms_norm(Tensor input, OptionalTensor residual, int64_t normalized_ndim,
                                            OptionalTensor weight, double eps) {
  const char* op = "rms_norm";
  check_float(op, "input", input);
  const Extent extent = extent_of(op, input, normalized_ndim);
  if (residual.has_value()) check_like(op, "residual", *residual, "input", input);
  check_affine(op, "weight", weight, input, normalized_ndim);

  const ScalarType dtype = input.scalar_type();
  Tensor output = empty(sizes_of(input), dtype, input);
  Tensor sum = residual.has_value() ? empty(sizes_of(input), dtype, input) : nothing(dtype, input);
  Tensor rstd = empty(leading_sizes(input, normalized_ndim), acc_dtype(dtype), input);
  if (extent.rows > 0) {
    Launch launch(input);
    Tensor input_holder, residual_holder;
    const OptionalTensor weight_row = contiguous(weight);
    RmsNormParams params{};
    params.input = rows_of(input, normalized_ndim, input_holder);
    params.residual = rows_of(residual, normalized_ndim, residual_holder);
    params.weight = data_or_null(weight_row);
    params.output = output.mutable_data_ptr();
    params.sum = residual.has_value() ? sum.mutable_data_ptr() : nullptr;
    params.rstd = rstd.mutable_data_ptr();
    params.rows = extent.rows;
    params.cols = extent.cols;
    params.eps = eps;
    params.dtype = to_dtype(dtype);
    backend::rms_norm(params, launch.stream());
  }
  return {output, sum, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(Tensor grad_output, OptionalTensor grad_sum, Tensor sum,
                                             OptionalTensor weight, Tensor rstd, int64_t normalized_ndim,
                                             bool need_input, bool need_weight) {
  const char* op = "rms_norm_backward";
  check_float(op, "sum", sum);
  const Extent extent = extent_of(op, sum, normalized_ndim);
  check_like(op, "grad_output", grad_output, "sum", sum);
  if (grad_sum.has_value()) check_like(op, "grad_sum", *grad_sum, "sum", sum);
  check_affine(op, "weight", weight, sum, normalized_ndim);
  check_same_device(op, "rstd", rstd, "sum", sum);
  const ScalarType dtype = sum.scalar_type();
  WARPWRIGHT_CHECK(rstd.numel() == extent.rows && rstd.scalar_type() == acc_dtype(dtype), op, "rstd must hold ",
                   extent.rows, " elements of ", dtype_name(acc_dtype(dtype)), ", got ", rstd.numel(), " of ",
                   dtype_name(rstd.scalar_type()));

  Tensor grad_input = need_input ? empty(sizes_of(sum), dtype, sum) : nothing(dtype, sum);
  const std::vector<int64_t> affine(sum.sizes().end() - normalized_ndim, sum.sizes().end());
  Tensor grad_weight = need_weight ? empty(affine, dtype, sum) : nothing(dtype, sum);
  Tensor partials =
      need_weight ? empty({norm_partials(extent.rows), extent.cols}, acc_dtype(dtype), sum) : nothing(dtype, sum);
  Launch launch(sum);
  Tensor grad_holder, grad_sum_holder, sum_holder;
  const OptionalTensor weight_row = contiguous(weight);
  const Tensor rstd_row = torch::stable::contiguous(rstd);
  RmsNormBackwardParams params{};
  params.grad_output = rows_of(grad_output, normalized_ndim, grad_holder);
  params.grad_sum = rows_of(grad_sum, normalized_ndim, grad_sum_holder);
  params.sum = rows_of(sum, normalized_ndim, sum_holder);
  params.weight = data_or_null(weight_row);
  params.rstd = rstd_row.const_data_ptr();
  params.grad_input = need_input ? grad_input.mutable_data_ptr() : nullptr;
  params.grad_weight = need_weight ? grad_weight.mutable_data_ptr() : nullptr;
  params.partials = need_weight ? partials.mutable_data_ptr() : nullptr;
  params.rows = extent.rows;
  params.cols = extent.cols;
  params.dtype = to_dtype(dtype);
  backend::rms_norm_backward(params, launch.stream());
  return {grad_input, grad_weight};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
}

}  // namespace warpwright
