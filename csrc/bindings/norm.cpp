// Bindings of the norm family. RMS norm, layer norm and the division by the length share everything but the mean.

#include "kernels/norm.h"

#include "bindings/common.h"
#include "bindings/dropout_mask.h"
#include "bindings/norm_rows.h"

namespace warpwright {
namespace {

void check_statistics(const char* op, const char* name, const Tensor& tensor, const char* sum_name, const Tensor& sum,
                      const NormExtent& extent) {
  check_same_device(op, name, tensor, sum_name, sum);
  const ScalarType dtype = acc_dtype(sum.scalar_type());
  WARPWRIGHT_CHECK(tensor.numel() == extent.rows && tensor.scalar_type() == dtype, op, name, " must hold ", extent.rows,
                   " elements of ", dtype_name(dtype), ", got ", tensor.numel(), " of ",
                   dtype_name(tensor.scalar_type()));
}

// The arguments that change what a norm computes, not over what.
struct Options {
  double eps, weight_offset = 0, dropout_p = 0;
  OptionalTensor seed = std::nullopt;
  int64_t offset = 0;
};

struct NormOutput {
  Tensor output, sum, mean, rstd;
};

NormOutput forward(const char* op, const Tensor& input, const OptionalTensor& residual, int64_t normalized_ndim,
                   const OptionalTensor& weight, const OptionalTensor& bias, const Options& options, bool centred,
                   bool l2 = false) {
  check_float(op, "input", input);
  const NormExtent extent = norm_extent(op, input, normalized_ndim);
  if (residual.has_value()) check_like(op, "residual", *residual, "input", input);
  check_affine(op, "weight", weight, input, extent);
  check_affine(op, "bias", bias, input, extent);
  WARPWRIGHT_CHECK(options.weight_offset == 0 || weight.has_value(), op, "weight must be given with weight_offset");
  const Dropout dropout = to_dropout(op, options.dropout_p, options.seed, options.offset, "input", input);

  const ScalarType dtype = input.scalar_type(), statistics = acc_dtype(dtype);
  const bool has_sum = residual.has_value() || dropout.seed != nullptr;
  NormOutput result{empty(sizes_of(input), dtype, input),
                    has_sum ? empty(sizes_of(input), dtype, input) : nothing(dtype, input),
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
  params.sum = has_sum ? result.sum.mutable_data_ptr() : nullptr;
  params.mean = centred ? result.mean.mutable_data_ptr() : nullptr;
  params.rstd = result.rstd.mutable_data_ptr();
  params.rows = extent.rows;
  params.cols = extent.cols;
  params.eps = options.eps;
  params.weight_offset = options.weight_offset;
  params.dropout = dropout;
  params.l2 = l2;
  params.dtype = to_dtype(dtype);
  Launch launch(input);
  backend::norm_forward(params, launch.stream());
  return result;
}

struct NormGrads {
  Tensor grad_input, grad_residual, grad_weight, grad_bias;
};

struct Needs {
  bool input;
  bool residual = false, weight = false, bias = false;
};

NormGrads backward(const char* op, const Tensor& grad_output, const OptionalTensor& grad_sum, const char* sum_name,
                   const Tensor& sum, const OptionalTensor& weight, const OptionalTensor& mean, const char* rstd_name,
                   const Tensor& rstd, int64_t normalized_ndim, const Options& options, const Needs& need,
                   bool l2 = false) {
  check_float(op, sum_name, sum);
  const NormExtent extent = norm_extent(op, sum, normalized_ndim);
  check_like(op, "grad_output", grad_output, sum_name, sum);
  if (grad_sum.has_value()) check_like(op, "grad_sum", *grad_sum, sum_name, sum);
  check_affine(op, "weight", weight, sum, extent);
  if (mean.has_value()) check_statistics(op, "mean", *mean, sum_name, sum, extent);
  check_statistics(op, rstd_name, rstd, sum_name, sum, extent);
  const Dropout dropout = to_dropout(op, options.dropout_p, options.seed, options.offset, sum_name, sum);

  const ScalarType dtype = sum.scalar_type(), statistics = acc_dtype(dtype);
  const auto like_sum = [&](bool needed) { return needed ? empty(sizes_of(sum), dtype, sum) : nothing(dtype, sum); };
  const auto affine = [&](bool needed) { return needed ? empty(extent.affine, dtype, sum) : nothing(dtype, sum); };
  const auto partials = [&](bool needed) {
    return needed ? empty({norm_partials(extent.rows, backend::kNormBlockRows), extent.cols}, statistics, sum)
                  : nothing(statistics, sum);
  };
  NormGrads grads{like_sum(need.input), like_sum(need.residual), affine(need.weight), affine(need.bias)};
  Tensor weight_partials = partials(need.weight), bias_partials = partials(need.bias);
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
  params.grad_input = need.input ? grads.grad_input.mutable_data_ptr() : nullptr;
  params.grad_residual = need.residual ? grads.grad_residual.mutable_data_ptr() : nullptr;
  params.grad_weight = need.weight ? grads.grad_weight.mutable_data_ptr() : nullptr;
  params.grad_bias = need.bias ? grads.grad_bias.mutable_data_ptr() : nullptr;
  params.weight_partials = need.weight ? weight_partials.mutable_data_ptr() : nullptr;
  params.bias_partials = need.bias ? bias_partials.mutable_data_ptr() : nullptr;
  params.rows = extent.rows;
  params.cols = extent.cols;
  params.eps = options.eps;
  params.weight_offset = options.weight_offset;
  params.dropout = dropout;
  params.l2 = l2;
  params.dtype = to_dtype(dtype);
  Launch launch(sum);
  backend::norm_backward(params, launch.stream());
  return grads;
}

std::tuple<Tensor, Tensor, Tensor> rms_norm(Tensor input, OptionalTensor residual, int64_t normalized_ndim,
                                            OptionalTensor weight, double eps, double weight_offset, double dropout_p,
                                            OptionalTensor seed, int64_t offset) {
  NormOutput r = forward("rms_norm", input, residual, normalized_ndim, weight, std::nullopt,
                         {eps, weight_offset, dropout_p, seed, offset}, false);
  return {r.output, r.sum, r.rstd};
}

std::tuple<Tensor, Tensor, Tensor> rms_norm_backward(Tensor grad_output, OptionalTensor grad_sum, Tensor sum,
                                                     OptionalTensor weight, Tensor rstd, int64_t normalized_ndim,
                                                     double weight_offset, double dropout_p, OptionalTensor seed,
                                                     int64_t offset, bool need_input, bool need_residual,
                                                     bool need_weight) {
  NormGrads g =
      backward("rms_norm_backward", grad_output, grad_sum, "sum", sum, weight, std::nullopt, "rstd", rstd,
               normalized_ndim, {0, weight_offset, dropout_p, seed, offset}, {need_input, need_residual, need_weight});
  return {g.grad_input, g.grad_residual, g.grad_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm(Tensor input, OptionalTensor residual, int64_t normalized_ndim,
                                                      OptionalTensor weight, OptionalTensor bias, double eps,
                                                      double weight_offset, double dropout_p, OptionalTensor seed,
                                                      int64_t offset) {
  NormOutput r = forward("layer_norm", input, residual, normalized_ndim, weight, bias,
                         {eps, weight_offset, dropout_p, seed, offset}, true);
  return {r.output, r.sum, r.mean, r.rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm_backward(Tensor grad_output, OptionalTensor grad_sum, Tensor sum,
                                                               OptionalTensor weight, Tensor mean, Tensor rstd,
                                                               int64_t normalized_ndim, double weight_offset,
                                                               double dropout_p, OptionalTensor seed, int64_t offset,
                                                               bool need_input, bool need_residual, bool need_weight,
                                                               bool need_bias) {
  NormGrads g =
      backward("layer_norm_backward", grad_output, grad_sum, "sum", sum, weight, mean, "rstd", rstd, normalized_ndim,
               {0, weight_offset, dropout_p, seed, offset}, {need_input, need_residual, need_weight, need_bias});
  return {g.grad_input, g.grad_residual, g.grad_weight, g.grad_bias};
}

std::tuple<Tensor, Tensor> l2_normalize(Tensor input, double eps) {
  NormOutput r = forward("l2_normalize", input, std::nullopt, 1, std::nullopt, std::nullopt, {eps}, false, true);
  return {r.output, r.rstd};
}

Tensor l2_normalize_backward(Tensor grad_output, Tensor input, Tensor norm, double eps) {
  return backward("l2_normalize_backward", grad_output, std::nullopt, "input", input, std::nullopt, std::nullopt,
                  "norm", norm, 1, {eps}, {true}, true)
      .grad_input;
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
  m.impl("l2_normalize", TORCH_BOX(&l2_normalize));
  m.impl("l2_normalize_backward", TORCH_BOX(&l2_normalize_backward));
}

}  // namespace warpwright
