// Bindings of the activation family: activations of a tensor, and gated ones.

#include "kernels/activation.h"

#include <string>

#include "bindings/common.h"

namespace warpwright {
namespace {

ActivationForm to_form(const std::string& op, const std::string& activation) {
  if (activation == "relu_squared") return {Activation::kRelu, true};
  return {to_activation(op.c_str(), activation), false};
}

// Errors name the public function that is called for an activation.
std::string activation_name(const std::string& activation) {
  if (activation == "gelu_tanh") return "gelu";
  const bool known =
      activation == "gelu" || activation == "silu" || activation == "relu" || activation == "relu_squared";
  return known ? activation : "activation";
}

std::string glu_name(const std::string& activation) {
  if (activation == "silu") return "swiglu";
  if (activation == "gelu" || activation == "gelu_tanh") return "geglu";
  return activation == "relu" ? "reglu" : "glu";
}

void check_bias(const std::string& op, const char* name, const OptionalTensor& bias, const char* like_name,
                const Tensor& like) {
  if (!bias.has_value()) return;
  check_same_device(op.c_str(), name, *bias, like_name, like);
  check_same_dtype(op.c_str(), name, *bias, like_name, like);
  const bool fits = like.dim() >= 1 && bias->dim() == 1 && bias->size(0) == like.size(like.dim() - 1);
  WARPWRIGHT_CHECK(fits, op.c_str(), name, " must have shape (n,) for ", like_name, " (..., n), got ",
                   shape_text(bias->sizes()), " for ", shape_text(like.sizes()));
}

void check_gate(const std::string& op, const Tensor& gate, const Tensor& up, const OptionalTensor& gate_bias,
                const OptionalTensor& up_bias) {
  check_float(op.c_str(), "gate", gate);
  WARPWRIGHT_CHECK(gate.dim() >= 1, op.c_str(), "gate must have at least 1 dimension, got 0");
  check_like(op.c_str(), "up", up, "gate", gate);
  check_bias(op, "gate_bias", gate_bias, "gate", gate);
  check_bias(op, "up_bias", up_bias, "gate", gate);
}

// How many of the last dimensions make a row: all of them where every tensor is contiguous and nothing is added to a
// column, which makes one long row.
int64_t row_ndim_of(const std::vector<OptionalTensor>& tensors, bool by_column) {
  const int64_t ndim = tensors.front()->dim();
  for (const OptionalTensor& tensor : tensors) {
    if (by_column || (tensor.has_value() && !tensor->is_contiguous())) return ndim < 1 ? ndim : 1;
  }
  return ndim;
}

int64_t cols_of(const Tensor& tensor, int64_t row_ndim) {
  int64_t cols = 1;
  for (int64_t d = tensor.dim() - row_ndim; d < tensor.dim(); ++d) cols *= tensor.size(d);
  return cols;
}

Tensor forward(const Tensor& gate, const OptionalTensor& up, const OptionalTensor& gate_bias,
               const OptionalTensor& up_bias, ActivationForm form) {
  Tensor output = empty(sizes_of(gate), gate.scalar_type(), gate);
  if (gate.numel() == 0) return output;
  Launch launch(gate);
  const int64_t row_ndim = row_ndim_of({gate, up}, gate_bias.has_value() || up_bias.has_value());
  Tensor gate_holder, up_holder;
  const OptionalTensor gate_row = contiguous(gate_bias), up_row = contiguous(up_bias);
  GluParams params{};
  params.gate = rows_of(gate, row_ndim, gate_holder);
  params.up = rows_of(up, row_ndim, up_holder);
  params.gate_bias = data_or_null(gate_row);
  params.up_bias = data_or_null(up_row);
  params.output = output.mutable_data_ptr();
  params.cols = cols_of(gate, row_ndim);
  params.rows = gate.numel() / params.cols;
  params.form = form;
  params.dtype = to_dtype(gate.scalar_type());
  backend::glu(params, launch.stream());
  return output;
}

struct GluNeeds {
  bool gate, up, gate_bias, up_bias;
};

struct GluGrads {
  Tensor grad_gate, grad_up, grad_gate_bias, grad_up_bias;
};

GluGrads backward(const Tensor& grad_output, const Tensor& gate, const OptionalTensor& up,
                  const OptionalTensor& gate_bias, const OptionalTensor& up_bias, ActivationForm form,
                  const GluNeeds& need) {
  const ScalarType dtype = gate.scalar_type(), sums = acc_dtype(dtype);
  const bool partials = need.gate_bias || need.up_bias;
  // An empty tensor has no long row: its dimensions do not merge.
  const bool by_column = partials || gate_bias.has_value() || up_bias.has_value() || gate.numel() == 0;
  const int64_t row_ndim = row_ndim_of({gate, up, grad_output}, by_column);
  const int64_t cols = cols_of(gate, row_ndim), rows = cols == 0 ? 0 : gate.numel() / cols;
  const int64_t groups = partials ? glu_partials(rows) : rows;
  const auto like_gate = [&](bool wanted) {
    return wanted ? empty(sizes_of(gate), dtype, gate) : nothing(dtype, gate);
  };
  const auto row = [&](bool wanted) { return wanted ? empty({cols}, dtype, gate) : nothing(dtype, gate); };
  const auto sums_of = [&](bool wanted) { return wanted ? empty({groups, cols}, sums, gate) : nothing(sums, gate); };
  const auto data = [](bool wanted, Tensor& tensor) { return wanted ? tensor.mutable_data_ptr() : nullptr; };
  GluGrads grads{like_gate(need.gate), like_gate(need.up), row(need.gate_bias), row(need.up_bias)};
  Tensor gate_partials = sums_of(need.gate_bias), up_partials = sums_of(need.up_bias);
  Tensor grad_holder, gate_holder, up_holder;
  const OptionalTensor gate_row = contiguous(gate_bias), up_row = contiguous(up_bias);
  Launch launch(gate);
  GluBackwardParams params{};
  params.grad_output = rows_of(grad_output, row_ndim, grad_holder);
  params.gate = rows_of(gate, row_ndim, gate_holder);
  params.up = rows_of(up, row_ndim, up_holder);
  params.gate_bias = data_or_null(gate_row);
  params.up_bias = data_or_null(up_row);
  params.grad_gate = data(need.gate, grads.grad_gate);
  params.grad_up = data(need.up, grads.grad_up);
  params.grad_gate_bias = data(need.gate_bias, grads.grad_gate_bias);
  params.grad_up_bias = data(need.up_bias, grads.grad_up_bias);
  params.gate_partials = data(need.gate_bias, gate_partials);
  params.up_partials = data(need.up_bias, up_partials);
  params.rows = rows;
  params.cols = cols;
  params.groups = groups;
  params.form = form;
  params.dtype = to_dtype(dtype);
  backend::glu_backward(params, launch.stream());
  return grads;
}

// ---- the operators ----

Tensor activation(Tensor input, OptionalTensor bias, std::string name) {
  const std::string op = activation_name(name);
  check_float(op.c_str(), "input", input);
  check_bias(op, "bias", bias, "input", input);
  return forward(input, std::nullopt, bias, std::nullopt, to_form(op, name));
}

std::tuple<Tensor, Tensor> activation_backward(Tensor grad_output, Tensor input, OptionalTensor bias, std::string name,
                                               bool need_input, bool need_bias) {
  const std::string op = activation_name(name) + "_backward";
  check_float(op.c_str(), "input", input);
  check_bias(op, "bias", bias, "input", input);
  check_like(op.c_str(), "grad_output", grad_output, "input", input);
  WARPWRIGHT_CHECK(bias.has_value() || !need_bias, op.c_str(), "there is no bias to have a gradient");
  const GluNeeds need{need_input, false, need_bias, false};
  GluGrads grads = backward(grad_output, input, std::nullopt, bias, std::nullopt, to_form(op, name), need);
  return {grads.grad_gate, grads.grad_gate_bias};
}

Tensor glu(Tensor gate, Tensor up, OptionalTensor gate_bias, OptionalTensor up_bias, std::string name) {
  const std::string op = glu_name(name);
  check_gate(op, gate, up, gate_bias, up_bias);
  return forward(gate, up, gate_bias, up_bias, to_form(op, name));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> glu_backward(Tensor grad_output, Tensor gate, Tensor up,
                                                        OptionalTensor gate_bias, OptionalTensor up_bias,
                                                        std::string name, bool need_gate, bool need_up,
                                                        bool need_gate_bias, bool need_up_bias) {
  const std::string op = glu_name(name) + "_backward";
  check_gate(op, gate, up, gate_bias, up_bias);
  check_like(op.c_str(), "grad_output", grad_output, "gate", gate);
  const GluNeeds need{need_gate, need_up, need_gate_bias, need_up_bias};
  GluGrads grads = backward(grad_output, gate, up, gate_bias, up_bias, to_form(op, name), need);
  return {grads.grad_gate, grads.grad_up, grads.grad_gate_bias, grads.grad_up_bias};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("activation", TORCH_BOX(&activation));
  m.impl("activation_backward", TORCH_BOX(&activation_backward));
  m.impl("glu", TORCH_BOX(&glu));
  m.impl("glu_backward", TORCH_BOX(&glu_backward));
}

}  // namespace warpwright
