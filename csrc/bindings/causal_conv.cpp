// Bindings of the causal_conv family.

#include "kernels/causal_conv.h"

#include "bindings/common.h"

namespace warpwright {
namespace {

// ---- arguments ----

void check_shape(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& expected) {
  WARPWRIGHT_CHECK(sizes_of(tensor) == expected, op, name, " must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(expected)), ", got ", shape_text(tensor.sizes()));
}

void check_part(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  check_same_device(op, name, tensor, "input", input);
  check_same_dtype(op, name, tensor, "input", input);
}

// Whether the activation is silu.
bool check_activation(const char* op, const std::string& name) {
  WARPWRIGHT_CHECK(name == "none" || name == "silu", op, "activation must be one of none, silu, got '", name, "'");
  return name == "silu";
}

void check_weights(const char* op, const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  check_float(op, "input", input);
  WARPWRIGHT_CHECK(input.dim() == 3, op, "input must have 3 dimensions (batch, channels, length), got ", input.dim());
  WARPWRIGHT_CHECK(weight.dim() == 2, op, "weight must have 2 dimensions (channels, width), got ", weight.dim());
  check_part(op, "weight", weight, input);
  WARPWRIGHT_CHECK(weight.size(0) == input.size(1), op, "weight has ", weight.size(0), " channels, input has ",
                   input.size(1));
  WARPWRIGHT_CHECK(weight.size(1) >= 1 && weight.size(1) <= kMaxConvWidth, op, "weight must be 1 to ", kMaxConvWidth,
                   " wide, got ", weight.size(1));
  if (!bias.has_value()) return;
  check_part(op, "bias", *bias, input);
  check_shape(op, "bias", *bias, {input.size(1)});
}

std::vector<int64_t> state_sizes(const Tensor& input, const Tensor& weight) {
  return {input.size(0), input.size(1), weight.size(1) - 1};
}

void check_state(const char* op, const char* name, const OptionalTensor& state, const Tensor& input,
                 const Tensor& weight) {
  if (!state.has_value()) return;
  check_part(op, name, *state, input);
  check_shape(op, name, *state, state_sizes(input, weight));
}

// ---- layouts ----

// Whether the channels lie closest. The output then lies so too.
bool lies_channels_last(const Tensor& input) {
  return input.size(1) > 1 && input.size(2) > 1 && input.stride(1) < input.stride(2);
}

Tensor empty_output(const Tensor& input) {
  if (!lies_channels_last(input)) return empty(sizes_of(input), input.scalar_type(), input);
  const int64_t channels = input.size(1);
  return empty_strided(sizes_of(input), {channels * input.size(2), 1, channels}, input.scalar_type(), input);
}

// Without elements there is no tensor: what is not wanted has none, nor has the state of a width of 1.
Sequences sequences_of(const Tensor& tensor) {
  if (tensor.numel() == 0) return {};
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}
Sequences sequences_of(const OptionalTensor& tensor) {
  return tensor.has_value() ? sequences_of(*tensor) : Sequences{};
}
Sequences written(Tensor& tensor) {
  if (tensor.numel() == 0) return {};
  return {tensor.mutable_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

CausalConvShape shape_of(const Tensor& input, const Tensor& weight, bool silu) {
  // The way that the input lies settles how sums are cut, whatever the others' ways.
  const bool last = lies_channels_last(input);
  return {input.size(0), input.size(1), input.size(2), weight.size(1), last, silu, to_dtype(input.scalar_type())};
}

// ---- operators ----

std::tuple<Tensor, Tensor> causal_conv1d(Tensor input, Tensor weight, OptionalTensor bias, OptionalTensor initial_state,
                                         std::string activation, bool return_final_state) {
  const char* op = "causal_conv1d";
  check_weights(op, input, weight, bias);
  check_state(op, "initial_state", initial_state, input, weight);
  const bool silu = check_activation(op, activation);
  const ScalarType dtype = input.scalar_type();
  Tensor output = empty_output(input);
  Tensor final_state = return_final_state ? empty(state_sizes(input, weight), dtype, input) : nothing(dtype, input);
  if (output.numel() == 0 && final_state.numel() == 0) return {output, final_state};
  const Tensor weight_rows = torch::stable::contiguous(weight);
  const OptionalTensor bias_row = contiguous(bias);
  CausalConvParams params{};
  params.shape = shape_of(input, weight, silu);
  params.input = sequences_of(input);
  params.initial_state = sequences_of(initial_state);
  params.output = written(output);
  params.final_state = written(final_state);
  params.weight = weight_rows.const_data_ptr();
  params.bias = data_or_null(bias_row);
  Launch launch(input);
  backend::causal_conv_forward(params, launch.stream());
  return {output, final_state};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward(Tensor grad_output, OptionalTensor grad_final_state,
                                                                  Tensor input, Tensor weight, OptionalTensor bias,
                                                                  OptionalTensor initial_state, std::string activation,
                                                                  bool need_input, bool need_weight, bool need_bias,
                                                                  bool need_initial_state) {
  const char* op = "causal_conv1d_backward";
  check_weights(op, input, weight, bias);
  check_state(op, "initial_state", initial_state, input, weight);
  check_state(op, "grad_final_state", grad_final_state, input, weight);
  check_like(op, "grad_output", grad_output, "input", input);
  const bool silu = check_activation(op, activation);
  const ScalarType dtype = input.scalar_type(), acc = acc_dtype(dtype);
  Tensor grad_input = need_input ? empty_output(input) : nothing(dtype, input);
  Tensor grad_weight = need_weight ? empty(sizes_of(weight), dtype, input) : nothing(dtype, input);
  Tensor grad_bias = need_bias ? empty({input.size(1)}, dtype, input) : nothing(dtype, input);
  Tensor grad_initial_state =
      need_initial_state ? empty(state_sizes(input, weight), dtype, input) : nothing(dtype, input);
  const Tensor weight_rows = torch::stable::contiguous(weight);
  const OptionalTensor bias_row = contiguous(bias);
  CausalConvBackwardParams params{};
  const CausalConvShape shape = params.shape = shape_of(input, weight, silu);
  params.input = sequences_of(input);
  params.initial_state = sequences_of(initial_state);
  params.grad_output = sequences_of(grad_output);
  params.grad_final_state = sequences_of(grad_final_state);
  params.grad_input = written(grad_input);
  params.grad_initial_state = written(grad_initial_state);
  params.weight = weight_rows.const_data_ptr();
  params.bias = data_or_null(bias_row);
  const int64_t slabs = shape.slabs();
  Tensor weight_partials = empty({need_weight ? slabs : 0, shape.channels, shape.width}, acc, input);
  Tensor bias_partials = empty({need_bias ? slabs : 0, shape.channels}, acc, input);
  params.grad_weight = need_weight ? grad_weight.mutable_data_ptr() : nullptr;
  params.grad_bias = need_bias ? grad_bias.mutable_data_ptr() : nullptr;
  params.weight_partials = need_weight ? weight_partials.mutable_data_ptr() : nullptr;
  params.bias_partials = need_bias ? bias_partials.mutable_data_ptr() : nullptr;
  Launch launch(input);
  backend::causal_conv_backward(params, launch.stream());
  return {grad_input, grad_weight, grad_bias, grad_initial_state};
}

void check_update_state(const char* op, const Tensor& state, const OptionalTensor& indices, const Tensor& input,
                        const Tensor& weight) {
  check_part(op, "state", state, input);
  if (!indices.has_value()) {
    check_shape(op, "state", state, state_sizes(input, weight));
  } else {
    const ScalarType dtype = indices->scalar_type();
    WARPWRIGHT_CHECK(dtype == ScalarType::Long || dtype == ScalarType::Int, op,
                     "state_indices must be torch.int64 or torch.int32, got ", dtype_name(dtype));
    check_same_device(op, "state_indices", *indices, "input", input);
    check_shape(op, "state_indices", *indices, {input.size(0)});
    const int64_t slots = state.dim() == 3 ? state.size(0) : 0;
    check_shape(op, "state", state, {slots, input.size(1), weight.size(1) - 1});
  }
  for (int64_t d = 0; d < 3; ++d) {
    WARPWRIGHT_CHECK(state.stride(d) != 0 || state.size(d) <= 1, op, "state must not be expanded: it is written to");
  }
}

Tensor causal_conv1d_update_(Tensor state, Tensor input, Tensor weight, OptionalTensor bias,
                             OptionalTensor state_indices, std::string activation) {
  const char* op = "causal_conv1d_update_";
  check_weights(op, input, weight, bias);
  check_update_state(op, state, state_indices, input, weight);
  const bool silu = check_activation(op, activation);
  Tensor output = empty_output(input);
  if (output.numel() == 0) return output;
  const Tensor weight_rows = torch::stable::contiguous(weight);
  const OptionalTensor bias_row = contiguous(bias);
  CausalConvUpdateParams params{};
  params.state = written(state);
  params.input = sequences_of(input);
  params.output = written(output);
  params.weight = weight_rows.const_data_ptr();
  params.bias = data_or_null(bias_row);
  params.slots = state.size(0);
  params.batch = input.size(0);
  params.channels = input.size(1);
  params.steps = input.size(2);
  params.width = weight.size(1);
  params.silu = silu;
  params.dtype = to_dtype(input.scalar_type());
  if (state_indices.has_value()) {
    params.indices = state_indices->const_data_ptr();
    params.index_stride = state_indices->stride(0);
    params.index_dtype = to_dtype(state_indices->scalar_type());
  }
  Launch launch(input);
  backend::causal_conv_update(params, launch.stream());
  return output;
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("causal_conv1d", TORCH_BOX(&causal_conv1d));
  m.impl("causal_conv1d_backward", TORCH_BOX(&causal_conv1d_backward));
  m.impl("causal_conv1d_update_", TORCH_BOX(&causal_conv1d_update_));
}

}  // namespace warpwright
