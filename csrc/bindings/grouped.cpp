// Bindings of the grouped family.

#include "bindings/grouped.h"

#include <limits>

#include "kernels/grouped.h"

namespace warpwright {

#if !defined(WARPWRIGHT_BACKEND_CPU)
namespace {

RowGroups groups_of(const Tensor& offsets, int64_t rows) {
  return {static_cast<const int32_t*>(offsets.const_data_ptr()), static_cast<int32_t>(offsets.size(0)),
          static_cast<int32_t>(rows)};
}

}  // namespace

ProductOutput grouped_product(const Tensor& a, const Tensor& b, const Tensor& offsets, const OptionalTensor& bias,
                              Activation activation, bool keep, bool batch_invariant) {
  const ScalarType dtype = a.scalar_type();
  const std::vector<int64_t> sizes{a.size(0), b.size(1)};
  ProductOutput result{empty(sizes, dtype, a), keep ? empty(sizes, dtype, a) : nothing(dtype, a)};
  const OptionalTensor bias_rows = contiguous(bias);
  Launch launch(a);
  GroupedParams params{};
  params.a = a.const_data_ptr();
  params.a_row = a.stride(0);
  params.a_col = a.stride(1);
  params.b = b.const_data_ptr();
  params.b_group = b.stride(0);
  params.b_row = b.stride(1);
  params.b_col = b.stride(2);
  params.bias = data_or_null(bias_rows);
  params.output = result.output.mutable_data_ptr();
  params.preact = keep ? result.preact.mutable_data_ptr() : nullptr;
  params.groups = groups_of(offsets, a.size(0));
  params.n = b.size(1);
  params.k = b.size(2);
  params.activation = activation;
  params.batch_invariant = batch_invariant;
  params.dtype = to_dtype(dtype);
  backend::grouped_matmul(params, launch.stream());
  return result;
}

Tensor grouped_weight_grad(const Tensor& a, const Tensor& b, const Tensor& offsets) {
  const Tensor result = empty({offsets.size(0), a.size(1), b.size(1)}, a.scalar_type(), a);
  Launch launch(a);
  GroupedWeightGradParams params{};
  params.a = a.const_data_ptr();
  params.a_row = a.stride(0);
  params.a_col = a.stride(1);
  params.b = b.const_data_ptr();
  params.b_row = b.stride(0);
  params.b_col = b.stride(1);
  params.output = result.mutable_data_ptr();
  params.groups = groups_of(offsets, a.size(0));
  params.m = a.size(1);
  params.n = b.size(1);
  params.dtype = to_dtype(a.scalar_type());
  backend::grouped_weight_grad(params, launch.stream());
  return result;
}

Tensor grouped_bias_grad(const Tensor& grad, const Tensor& offsets) {
  const Tensor result = empty({offsets.size(0), grad.size(1)}, grad.scalar_type(), grad);
  Launch launch(grad);
  GroupedBiasGradParams params{};
  params.grad = grad.const_data_ptr();
  params.grad_row = grad.stride(0);
  params.grad_col = grad.stride(1);
  params.output = result.mutable_data_ptr();
  params.groups = groups_of(offsets, grad.size(0));
  params.n = grad.size(1);
  params.dtype = to_dtype(grad.scalar_type());
  backend::grouped_bias_grad(params, launch.stream());
  return result;
}
#endif

namespace {

void check_operands(const char* op, const Tensor& input, const Tensor& weight, const Tensor& offsets) {
  check_float(op, "input", input);
  WARPWRIGHT_CHECK(input.dim() == 2, op, "input must have 2 dimensions, got ", input.dim());
  WARPWRIGHT_CHECK(input.size(0) <= std::numeric_limits<int32_t>::max(), op,
                   "input must have fewer than 2^31 rows, got ", input.size(0));
  WARPWRIGHT_CHECK(weight.dim() == 3, op, "weight must have 3 dimensions, got ", weight.dim());
  check_same_device(op, "weight", weight, "input", input);
  check_same_dtype(op, "weight", weight, "input", input);
  WARPWRIGHT_CHECK(weight.size(2) == input.size(1), op, "weight has ", weight.size(2), " input features, input has ",
                   input.size(1));
  WARPWRIGHT_CHECK(offsets.scalar_type() == ScalarType::Int, op, "offsets must be torch.int32, got ",
                   dtype_name(offsets.scalar_type()));
  check_same_device(op, "offsets", offsets, "input", input);
  WARPWRIGHT_CHECK(offsets.dim() == 1 && offsets.size(0) == weight.size(0), op, "offsets must have shape (",
                   weight.size(0), ",), got ", shape_text(offsets.sizes()));
}

// The offsets in one piece. Their values are looked at on the CPU alone: elsewhere nobody can without waiting for the
// device, and the kernels take care of themselves.
Tensor checked_offsets(const char* op, const Tensor& offsets, [[maybe_unused]] const Tensor& input) {
  Tensor ends = torch::stable::contiguous(offsets);
#if defined(WARPWRIGHT_BACKEND_CPU)
  const auto* data = static_cast<const int32_t*>(ends.const_data_ptr());
  int64_t before = 0;
  for (int64_t group = 0; group < ends.size(0); ++group) {
    WARPWRIGHT_CHECK(data[group] >= before && data[group] <= input.size(0), op,
                     "offsets must not decrease, from 0 on, nor exceed the ", input.size(0), " rows of input, got ",
                     data[group], " after ", before);
    before = data[group];
  }
#else
  (void)op;
#endif
  return ends;
}

std::tuple<Tensor, Tensor> grouped_matmul(Tensor input, Tensor weight, Tensor offsets, OptionalTensor bias,
                                          std::string activation_name, bool batch_invariant, bool save_preact) {
  const char* op = "grouped_matmul";
  check_operands(op, input, weight, offsets);
  const Activation activation = to_activation(op, activation_name);
  if (bias.has_value()) {
    check_same_device(op, "bias", *bias, "input", input);
    check_same_dtype(op, "bias", *bias, "input", input);
    const std::vector<int64_t> expected{weight.size(0), weight.size(1)};
    WARPWRIGHT_CHECK(sizes_of(*bias) == expected, op, "bias must have shape ",
                     shape_text(IntHeaderOnlyArrayRef(expected)), ", got ", shape_text(bias->sizes()));
  }
  const Tensor ends = checked_offsets(op, offsets, input);
  ProductOutput result =
      grouped_product(input, weight, ends, bias, activation, save_preact && needs_preact(activation), batch_invariant);
  return {result.output, result.preact};
}

std::tuple<Tensor, Tensor, Tensor> grouped_matmul_backward(Tensor grad_output, Tensor input, Tensor weight,
                                                           Tensor offsets, OptionalTensor saved,
                                                           std::string activation_name, bool batch_invariant,
                                                           bool need_input, bool need_weight, bool need_bias) {
  const char* op = "grouped_matmul_backward";
  check_operands(op, input, weight, offsets);
  const Activation activation = to_activation(op, activation_name);
  const std::vector<int64_t> sizes{input.size(0), weight.size(1)};
  check_same_device(op, "grad_output", grad_output, "input", input);
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  WARPWRIGHT_CHECK(sizes_of(grad_output) == sizes, op, "grad_output must have the shape of the output ",
                   shape_text(IntHeaderOnlyArrayRef(sizes)), ", got ", shape_text(grad_output.sizes()));
  check_saved(op, saved, activation, grad_output);
  const Tensor ends = checked_offsets(op, offsets, input);

  const ScalarType dtype = input.scalar_type();
  const Tensor grad = epilogue_grads(grad_output, saved, activation, weight.size(1), /*channels_in_rows=*/false,
                                     /*need_preact=*/true, /*need_bias=*/false)
                          .grad_preact;
  Tensor grad_input = nothing(dtype, input), grad_weight = nothing(dtype, input), grad_bias = nothing(dtype, input);
  if (need_input) {
    const Tensor back = torch::stable::transpose(weight, 1, 2);
    grad_input =
        grouped_product(grad, back, ends, std::nullopt, Activation::kNone, /*keep=*/false, batch_invariant).output;
  }
  if (need_weight) grad_weight = grouped_weight_grad(grad, input, ends);
  if (need_bias) grad_bias = grouped_bias_grad(grad, ends);
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("grouped_matmul", TORCH_BOX(&grouped_matmul));
  m.impl("grouped_matmul_backward", TORCH_BOX(&grouped_matmul_backward));
}

}  // namespace warpwright
