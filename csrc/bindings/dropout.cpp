// Bindings of the dropout family.

#include "kernels/dropout.h"

#include "bindings/common.h"
#include "kernels/philox.h"

namespace warpwright {
namespace {

Tensor apply(const char* op, const char* name, const Tensor& input, const OptionalTensor& residual, double p,
             const Tensor& seed, int64_t offset) {
  check_float(op, name, input);
  if (residual.has_value()) check_like(op, "residual", *residual, name, input);
  WARPWRIGHT_CHECK(p >= 0 && p <= 1, op, "p must be between 0 and 1, got ", p);
  check_same_device(op, "seed", seed, name, input);
  WARPWRIGHT_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1, op,
                   "seed must hold 1 element of torch.int64, got ", seed.numel(), " of ",
                   dtype_name(seed.scalar_type()));
  Tensor output = empty(sizes_of(input), input.scalar_type(), input);
  if (input.numel() == 0) return output;
  const int64_t row_ndim = input.dim() < 1 ? 0 : 1;
  Tensor input_holder, residual_holder;
  Launch launch(input);
  DropoutParams params{};
  params.input = rows_of(input, row_ndim, input_holder);
  params.residual = rows_of(residual, row_ndim, residual_holder);
  params.seed = seed.const_data_ptr();
  params.output = output.mutable_data_ptr();
  params.cols = input.dim() < 1 ? 1 : input.size(input.dim() - 1);
  params.rows = input.numel() / params.cols;
  params.offset = offset;
  params.threshold = dropout_threshold(p);
  params.scale = p == 1 ? 0 : 1 / (1 - p);
  params.dtype = to_dtype(input.scalar_type());
  backend::dropout_add(params, launch.stream());
  return output;
}

Tensor dropout_add(Tensor input, OptionalTensor residual, double p, Tensor seed, int64_t offset) {
  return apply("dropout_add", "input", input, residual, p, seed, offset);
}

Tensor dropout_add_backward(Tensor grad_output, double p, Tensor seed, int64_t offset) {
  return apply("dropout_add_backward", "grad_output", grad_output, std::nullopt, p, seed, offset);
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("dropout_add", TORCH_BOX(&dropout_add));
  m.impl("dropout_add_backward", TORCH_BOX(&dropout_add_backward));
}

}  // namespace warpwright
