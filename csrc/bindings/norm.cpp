// Bindings of the norm family. RMS norm and layer norm share everything but the mean.

#include "kernels/norm.h"

#include "bindings/common.h"

namespace warpwright {
namespace {

struct Extent {
  int64_t rows = 1, cols = 1;
  std::vector<int64_t> leading, affine;
};

Extent extent_of(const char* op, const Tensor& input, int64_t normalized_ndim) {
  WARPWRIGHT_CHECK(normalized_ndim >= 1 && normalized_ndim <= input.dim(), op,
                   "normalized_shape must have between 1 and input.dim() = ", input.dim(), " dimensions, got ",
                   normalized_ndim);
  const auto sizes = input.sizes();
  Extent extent{1, 1, {sizes.begin(), sizes.end() - normalized_ndim}, {sizes.end() - normalized_ndim, sizes.end()}};
  for (int64_t size : extent.leading) extent.rows *= size;
  for (int64_t size : extent.affine) extent.cols *= size;
  return extent;
}

void check_affine(const char* op, const char* name, const OptionalTensor& tensor, const Tensor& input,
                  const Extent& extent) {
  if (!tensor.has_value()) return;
  check_same_device(op, name, *tensor, "input", input);
  check_same_dtype(op, name, *tensor, "input", input);
  WARPWRIGHT_CHECK(sizes_of(*tensor) == extent.affine, op, name, " must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(extent.affine)), ", got ", shape_text(tensor->sizes()));
}

void check_statistics(const char* op, const char* name, const Tensor& tensor, const Tensor& sum, const Extent& extent) {
  check_same_device(op, name, tensor, "sum", sum);
  const ScalarType dtype = acc_dtype(sum.scalar_type());
  WARPWRIGHT_CHECK(tensor.numel() == extent.rows && tensor.scalar_type() == dtype, op, name, " must hold ", extent.rows,
                   " elements of ", dtype_name(dtype), ", got ", tensor.numel(), " of ",
                   dtype_name(tensor.scalar_type()));
}

struct NormOutput {
  Tensor output, sum, mean, rstd;
};

NormOutput forward(const char* op, const Tensor& input, const OptionalTensor& residual, int64_t normalized_ndim,
                   const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool centred) {
  check_float(op, "input", input);
  const Extent extent = extent_of(op, input, normalized_ndim);
  if (residual.has_value()) check_like(op, "residual", *residual, "input", input);
  check_affine(op, "weight", weight, input, extent);
  check_affine(op, "bias", bias, input, extent);

  const ScalarType dtype = input.scalar_type(), statistics = acc_dtype(dtype);
  NormOutput result{empty(sizes_of(input), dtype, input),
                    residual.has_value() ? empty(sizes_of(input), dtype, input) : nothing(dtype, input),
                    centred ? empty(extent.leading, statistics, input) : nothing(statistics, input),
                    empty(extent.leading, statistics, input)};
  if (extent.rows == 0) return result;
  Tensor input_holder, residual_holder;
  const OptionalTensor weight_row = contiguous(weight), bias_row = contiguous(bias);
  NormParams params{};
  params.input = rows_of(input, normalized_ndim, input_holder);
  params.residual = rows_of(residual, normalized_ndim, residual_holder);
  params.weight = data_or_null(weight_row);
  params.bias = data_or_null(bias_row);
  params.output = result.output.mutable_data_ptr();
  params.sum = residual.has_value() ? result.sum.mutable_data_ptr() : nullptr;
  params.mean = centred ? result.mean.mutable_data_ptr() : nullptr;
  params.rstd = result.rstd.mutable_data_ptr();
  params.rows = extent.rows;
  params.cols = extent.cols;
  params.eps = eps;
  params.dtype = to_dtype(dtype);
  Launch launch(input);
  backend::norm_forward(params, launch.stream());
  return result;
}

struct NormGrads {
  Tensor grad_input, grad_weight, grad_bias;
};

NormGrads backward(const char* op, const Tensor& grad_output, const OptionalTensor& grad_sum, const Tensor& sum,
                   const OptionalTensor& weight, const OptionalTensor& mean, const Tensor& rstd,
                   int64_t normalized_ndim, bool need_input, bool need_weight, bool need_bias) {
  check_float(op, "sum", sum);
  const Extent extent = extent_of(op, sum, normalized_ndim);
  check_like(op, "grad_output", grad_output, "sum", sum);
  if (grad_sum.has_value()) check_like(op, "grad_sum", *grad_sum, "sum", sum);
  check_affine(op, "weight", weight, sum, extent);
  if (mean.has_value()) check_statistics(op, "mean", *mean, sum, extent);
  check_statistics(op, "rstd", rstd, sum, extent);

  const ScalarType dtype = sum.scalar_type(), statistics = acc_dtype(dtype);
  const std::vector<int64_t> partials_shape{norm_partials(extent.rows), extent.cols};
  NormGrads grads{need_input ? empty(sizes_of(sum), dtype, sum) : nothing(dtype, sum),
                  need_weight ? empty(extent.affine, dtype, sum) : nothing(dtype, sum),
                  need_bias ? empty(extent.affine, dtype, sum) : nothing(dtype, sum)};
  Tensor weight_partials = need_weight ? empty(partials_shape, statistics, sum) : nothing(statistics, sum);
  Tensor bias_partials = need_bias ? empty(partials_shape, statistics, sum) : nothing(statistics, sum);
  Tensor grad_holder, grad_sum_holder, sum_holder;
  const OptionalTensor weight_row = contiguous(weight), mean_row = contiguous(mean);
  const Tensor rstd_row = torch::stable::contiguous(rstd);
  NormBackwardParams params{};
  params.grad_output = rows_of(grad_output, normalized_ndim, grad_holder);
  params.grad_sum = rows_of(grad_sum, normalized_ndim, grad_sum_holder);
  params.sum = rows_of(sum, normalized_ndim, sum_holder);
  params.weight = data_or_null(weight_row);
  params.mean = data_or_null(mean_row);
  params.rstd = rstd_row.const_data_ptr();
  params.grad_input = need_input ? grads.grad_input.mutable_data_ptr() : nullptr;
  params.grad_weight = need_weight ? grads.grad_weight.mutable_data_ptr() : nullptr;
  params.grad_bias = need_bias ? grads.grad_bias.mutable_data_ptr() : nullptr;
  params.weight_partials = need_weight ? weight_partials.mutable_data_ptr() : nullptr;
  params.bias_partials = need_bias ? bias_partials.mutable_data_ptr() : nullptr;
  params.rows = extent.rows;
  params.cols = extent.cols;
  params.dtype = to_dtype(dtype);
  Launch launch(sum);
  backend::norm_backward(params, launch.stream());
  return grads;
}

std::tuple<Tensor, Tensor, Tensor> rms_norm(Tensor input, OptionalTensor residual, int64_t normalized_ndim,
                                            OptionalTensor weight, double eps) {
  NormOutput r = forward("rms_norm", input, residual, normalized_ndim, weight, std::nullopt, eps, false);
  return {r.output, r.sum, r.rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(Tensor grad_output, OptionalTensor grad_sum, Tensor sum,
                                             OptionalTensor weight, Tensor rstd, int64_t normalized_ndim,
                                             bool need_input, bool need_weight) {
  NormGrads g = backward("rms_norm_backward", grad_output, grad_sum, sum, weight, std::nullopt, rstd, normalized_ndim,
                         need_input, need_weight, false);
  return {g.grad_input, g.grad_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm(Tensor input, OptionalTensor residual, int64_t normalized_ndim,
                                                      OptionalTensor weight, OptionalTensor bias, double eps) {
  NormOutput r = forward("layer_norm", input, residual, normalized_ndim, weight, bias, eps, true);
  return {r.output, r.sum, r.mean, r.rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(Tensor grad_output, OptionalTensor grad_sum, Tensor sum,
                                                       OptionalTensor weight, Tensor mean, Tensor rstd,
                                                       int64_t normalized_ndim, bool need_input, bool need_weight,
                                                       bool need_bias) {
  NormGrads g = backward("layer_norm_backward", grad_output, grad_sum, sum, weight, mean, rstd, normalized_ndim,
                         need_input, need_weight, need_bias);
  return {g.grad_input, g.grad_weight, g.grad_bias};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
}

}  // namespace warpwright
