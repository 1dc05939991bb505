// Bindings of the sync_batch_norm family: the stages of a batch norm whose batch is spread over several processes. What
// lies between them, the exchange, is the caller's.

#include "kernels/sync_batch_norm.h"

#include "bindings/channel_norm.h"

namespace warpwright {
namespace {

Tensor moments_of(Tensor input) {
  check_norm_input("batch_norm_moments", input);
  return batch_norm_moments(input);
}

void check_running(const char* op, const char* name, const OptionalTensor& tensor, const Tensor& moments) {
  if (!tensor.has_value()) return;
  check_same_device(op, name, *tensor, "moments", moments);
  const ScalarType wide = moments.scalar_type(), found = tensor->scalar_type();
  const bool doubles = wide == ScalarType::Double;
  const bool half = !doubles && (found == ScalarType::Half || found == ScalarType::BFloat16);
  WARPWRIGHT_CHECK(found == wide || half, op, name, " must be ", doubles ? "float64" : "float32, float16 or bfloat16",
                   ", got ", dtype_name(found));
  WARPWRIGHT_CHECK(tensor->dim() == 1 && tensor->size(0) == moments.size(2), op, name, " must have shape (",
                   moments.size(2), ",), got ", shape_text(tensor->sizes()));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_join(Tensor moments, OptionalTensor running_mean,
                                                                   OptionalTensor running_var, double momentum) {
  const char* op = "batch_norm_join";
  check_float(op, "moments", moments);
  const ScalarType dtype = moments.scalar_type();
  WARPWRIGHT_CHECK(dtype == acc_dtype(dtype), op, "moments must be float32 or float64, got ", dtype_name(dtype));
  WARPWRIGHT_CHECK(moments.dim() == 3 && moments.size(1) == 3, op,
                   "moments must have shape (processes, 3, channels), got ", shape_text(moments.sizes()));
  check_running(op, "running_mean", running_mean, moments);
  check_running(op, "running_var", running_var, moments);
  const bool both = running_mean.has_value() && running_var.has_value();
  if (both) check_same_dtype(op, "running_var", *running_var, "running_mean", *running_mean);

  const int64_t channels = moments.size(2);
  const auto room = [&] { return empty({channels}, dtype, moments); };
  const auto moved = [&](const OptionalTensor& running) {
    return running.has_value() ? empty({channels}, running->scalar_type(), moments) : nothing(dtype, moments);
  };
  Tensor mean = room(), var = room(), elements = room(), new_mean = moved(running_mean), new_var = moved(running_var);
  if (channels == 0) return {mean, var, elements, new_mean, new_var};
  const Tensor from = torch::stable::contiguous(moments);
  const OptionalTensor old_mean = contiguous(running_mean), old_var = contiguous(running_var);
  const OptionalTensor& running = running_mean.has_value() ? running_mean : running_var;
  const ScalarType narrow = running.has_value() ? running->scalar_type() : dtype;
  MomentsJoinParams params{};
  params.moments = from.const_data_ptr();
  params.running_mean = per_channel(old_mean, narrow);
  params.running_var = per_channel(old_var, narrow);
  if (running_mean.has_value()) params.new_mean = per_channel(new_mean, narrow);
  if (running_var.has_value()) params.new_var = per_channel(new_var, narrow);
  params.mean = mean.mutable_data_ptr();
  params.var = var.mutable_data_ptr();
  params.elements = elements.mutable_data_ptr();
  params.processes = moments.size(0);
  params.channels = channels;
  params.momentum = momentum;
  params.dtype = to_dtype(narrow);
  Launch launch(moments);
  backend::moments_join(params, launch.stream());
  return {mean, var, elements, new_mean, new_var};
}

// What both halves of the backward pass take.
void check_backward(const char* op, const Tensor& grad_output, const Tensor& input, const Affine& affine,
                    const OptionalTensor& residual, const Tensor& mean, const Tensor& rstd) {
  check_norm_input(op, input);
  check_like(op, "grad_output", grad_output, "input", input);
  check_channels(op, "weight", affine.weight, input);
  check_channels(op, "bias", affine.bias, input);
  if (residual.has_value()) check_like(op, "residual", *residual, "input", input);
  check_norm_statistics(op, "mean", mean, input, input.size(1));
  check_norm_statistics(op, "rstd", rstd, input, input.size(1));
}

Tensor batch_norm_sums(Tensor grad_output, Tensor input, OptionalTensor weight, OptionalTensor bias,
                       OptionalTensor residual, Tensor mean, Tensor rstd, std::string activation_name) {
  const char* op = "batch_norm_sums";
  const Affine affine{weight, bias};
  check_backward(op, grad_output, input, affine, residual, mean, rstd);
  const Activation activation = norm_activation(op, activation_name);
  Tensor found = empty({2, input.size(1)}, acc_dtype(input.scalar_type()), input);
  ChannelSums sums;
  sums.found = &found;
  batch_norm_grads(grad_output, input, affine, residual, mean, rstd, false, activation, {}, sums);
  return found;
}

std::tuple<Tensor, Tensor> batch_norm_input_grad(Tensor grad_output, Tensor input, OptionalTensor weight,
                                                 OptionalTensor bias, OptionalTensor residual, Tensor mean, Tensor rstd,
                                                 Tensor sums, Tensor elements, std::string activation_name,
                                                 bool need_input, bool need_residual) {
  const char* op = "batch_norm_input_grad";
  const Affine affine{weight, bias};
  check_backward(op, grad_output, input, affine, residual, mean, rstd);
  WARPWRIGHT_CHECK(sums.dim() == 2 && sums.size(0) == 2, op, "sums must have shape (2, ", input.size(1), "), got ",
                   shape_text(sums.sizes()));
  check_norm_statistics(op, "sums", sums, input, 2 * input.size(1));
  check_norm_statistics(op, "elements", elements, input, input.size(1));
  const Activation activation = norm_activation(op, activation_name);
  const Tensor from = torch::stable::contiguous(sums), over = torch::stable::contiguous(elements);
  ChannelSums given;
  given.given = &from;
  given.elements = &over;
  NormGrads grads = batch_norm_grads(grad_output, input, affine, residual, mean, rstd, false, activation,
                                     {need_input, false, false, need_residual}, given);
  return {grads.grad_input, grads.grad_residual};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("batch_norm_moments", TORCH_BOX(&moments_of));
  m.impl("batch_norm_join", TORCH_BOX(&batch_norm_join));
  m.impl("batch_norm_sums", TORCH_BOX(&batch_norm_sums));
  m.impl("batch_norm_input_grad", TORCH_BOX(&batch_norm_input_grad));
}

}  // namespace warpwright
