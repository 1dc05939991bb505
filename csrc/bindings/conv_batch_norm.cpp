// Bindings of the conv_batch_norm family: a convolution, whose kernel finds the statistics of what it stores where it
// can, and a batch norm that takes them from it.

#include "bindings/channel_norm.h"
#include "bindings/conv.h"

namespace warpwright {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> convolution_batch_norm(
    Tensor input, Tensor weight, OptionalTensor bias, OptionalTensor residual, OptionalTensor running_mean,
    OptionalTensor running_var, OptionalTensor bn_weight, OptionalTensor bn_bias, std::vector<int64_t> stride,
    std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups, bool training, double momentum,
    double eps, std::string activation_name, std::string precision, bool save_product) {
  const std::string name = conv_name(weight, false, "_batch_norm");
  const char* op = name.c_str();
  const ConvCall call = check_conv(op, input, weight, {stride, padding, dilation, false, {}, groups}, precision);
  const int64_t filters = call.output_sizes[1], values = call.output_sizes[0] * call.output_pixels();
  check_bias(op, "bias", bias, input, filters);
  if (residual.has_value()) check_conv_output(op, "residual", *residual, call);
  WARPWRIGHT_CHECK(training || (running_mean.has_value() && running_var.has_value()), op,
                   "running_mean and running_var must be given unless training");
  check_channels(op, "running_mean", running_mean, input, filters);
  check_channels(op, "running_var", running_var, input, filters);
  check_channels(op, "bn_weight", bn_weight, input, filters);
  check_channels(op, "bn_bias", bn_bias, input, filters);
  const Activation activation = norm_activation(op, activation_name);
  WARPWRIGHT_CHECK(!training || values != 1 || filters == 0, op,
                   "the output must have more than one value per channel in training, got shape ",
                   shape_text(IntHeaderOnlyArrayRef(call.output_sizes)));

  const Affine affine{bn_weight, bn_bias};
  const Running running{running_mean, running_var, !training, momentum};
  const Tensor none = nothing(input.scalar_type(), input),
               no_statistics = nothing(acc_dtype(input.scalar_type()), input);
  if (!training && !save_product) {
    std::optional<Tensor> output = conv_normalized(call, bias, residual, affine, running, eps, activation);
    if (output.has_value()) return {*output, none, no_statistics, no_statistics, no_statistics, no_statistics};
  }
  SlabStatistics found;
  const Tensor product =
      conv_product(call, bias, std::nullopt, Activation::kNone, false, training ? &found : nullptr).output;
  const bool in_place = !training && !save_product;  // Nobody else sees the product.
  NormOutput r = batch_norm_forward(product, affine, running, residual, eps, activation, &found, in_place);
  if (in_place) return {r.output, none, no_statistics, no_statistics, r.new_mean, r.new_var};
  return {r.output, product, r.mean, r.rstd, r.new_mean, r.new_var};
}

std::tuple<Tensor, Tensor> convolution_moments(Tensor input, Tensor weight, OptionalTensor bias,
                                               std::vector<int64_t> stride, std::vector<int64_t> padding,
                                               std::vector<int64_t> dilation, int64_t groups, std::string precision) {
  const std::string name = conv_name(weight, false, "_moments");
  const char* op = name.c_str();
  const ConvCall call = check_conv(op, input, weight, {stride, padding, dilation, false, {}, groups}, precision);
  check_bias(op, "bias", bias, input, call.output_sizes[1]);
  SlabStatistics found;
  const Tensor product = conv_product(call, bias, std::nullopt, Activation::kNone, false, &found).output;
  return {product, batch_norm_moments(product, &found)};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("convolution_batch_norm", TORCH_BOX(&convolution_batch_norm));
  m.impl("convolution_moments", TORCH_BOX(&convolution_moments));
}

}  // namespace warpwright
