// The backward of an epilogue, for linear and convolution.

#include "kernels/epilogue.h"

#include "bindings/gemm.h"

namespace warpwright {

void check_saved(const char* op, const OptionalTensor& saved, Activation activation, const Tensor& grad_output) {
  WARPWRIGHT_CHECK(saved.has_value() == (activation != Activation::kNone), op,
                   "saved must be given with an activation and only then");
  if (saved.has_value()) check_like(op, "saved", *saved, "grad_output", grad_output);
}

EpilogueGrads epilogue_grads(const Tensor& grad_output, const OptionalTensor& saved, Activation activation,
                             int64_t channels, bool channels_in_rows, bool need_preact, bool need_bias, double scale) {
  const ScalarType dtype = grad_output.scalar_type();
  const bool write_preact = need_preact && (activation != Activation::kNone || scale != 1);
  EpilogueGrads grads{write_preact ? empty(sizes_of(grad_output), dtype, grad_output) : grad_output,
                      need_bias ? empty({channels}, dtype, grad_output) : nothing(dtype, grad_output)};
  if (!write_preact && !need_bias) return grads;
  Tensor grad_holder, saved_holder;
  EpilogueBackwardParams params{};
  params.cols = grad_output.size(grad_output.dim() - 1);
  params.rows = params.cols == 0 ? 0 : grad_output.numel() / params.cols;
  params.channels = channels;
  params.channels_in_rows = channels_in_rows;
  params.scale = scale;
  params.activation = activation;
  params.dtype = to_dtype(dtype);
  params.grad_output = rows_of(grad_output, 1, grad_holder);
  params.saved = rows_of(saved, 1, saved_holder);
  params.grad_preact = write_preact ? grads.grad_preact.mutable_data_ptr() : nullptr;
  Tensor partials = need_bias ? empty({epilogue_partials(params.rows, channels, channels_in_rows), channels},
                                      acc_dtype(dtype), grad_output)
                              : nothing(dtype, grad_output);
  params.partials = need_bias ? partials.mutable_data_ptr() : nullptr;
  params.grad_bias = need_bias ? grads.grad_bias.mutable_data_ptr() : nullptr;
  Launch launch(grad_output);
  backend::epilogue_backward(params, launch.stream());
  return grads;
}

}  // namespace warpwright
