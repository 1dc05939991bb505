// Bindings of the gated family.

#include "kernels/gated.h"

#include "bindings/gemm.h"

namespace warpwright {
namespace {

// The errors of linear_glu name the public function that is called for an activation.
const char* glu_name(const std::string& activation) {
  if (activation == "silu") return "linear_swiglu";
  return activation == "gelu" || activation == "gelu_tanh" ? "linear_geglu" : "linear_glu";
}

// The projections of a gated product, or with `gate` alone those of a plain one.
struct Projections {
  Tensor gate;
  OptionalTensor up;
};

void check_projections(const char* op, const Tensor& input, const Tensor& gate_weight, const Tensor& up_weight) {
  check_operands(op, input, "gate_weight", gate_weight);
  check_like(op, "up_weight", up_weight, "gate_weight", gate_weight);
}

// ---- forward ----

struct GatedOutput {
  Tensor output;    // (m, hidden)
  Tensor gate, up;  // The same with `save`, else no elements.
};

#if defined(WARPWRIGHT_BACKEND_CPU)

// Two products, and one pass that overwrites what nobody keeps.
GatedOutput gated(const Tensor& input, const Tensor& gate_weight, const Tensor& up_weight,
                  const OptionalTensor& gate_bias, const OptionalTensor& up_bias, Activation activation,
                  Arithmetic arithmetic, bool save) {
  const ScalarType dtype = input.scalar_type();
  Epilogue gate_epilogue, up_epilogue;
  gate_epilogue.bias = gate_bias;
  up_epilogue.bias = up_bias;
  Tensor gate = gemm(input, gate_weight, gate_epilogue, arithmetic).output;
  Tensor up = gemm(input, up_weight, up_epilogue, arithmetic).output;
  Tensor output = save ? empty(sizes_of(gate), dtype, gate) : gate;
  GateParams params{};
  params.gate = gate.mutable_data_ptr();
  params.up = up.const_data_ptr();
  params.output = output.mutable_data_ptr();
  params.keep = save;
  params.count = gate.numel();
  params.activation = activation;
  params.dtype = to_dtype(dtype);
  cpu::gate(params, nullptr);
  if (!save) gate = up = nothing(dtype, input);
  return {output, gate, up};
}

#else

GatedOutput gated(const Tensor& input, const Tensor& gate_weight, const Tensor& up_weight,
                  const OptionalTensor& gate_bias, const OptionalTensor& up_bias, Activation activation,
                  Arithmetic arithmetic, bool save) {
  const ScalarType dtype = input.scalar_type();
  const std::vector<int64_t> sizes = {input.size(0), gate_weight.size(0)};
  const auto saved = [&] { return save ? empty(sizes, dtype, input) : nothing(dtype, input); };
  GatedOutput result{empty(sizes, dtype, input), saved(), saved()};
  const OptionalTensor gate_row = contiguous(gate_bias), up_row = contiguous(up_bias);
  Launch launch(input);
  GatedParams params{};
  params.input = input.const_data_ptr();
  params.input_row = input.stride(0);
  params.input_col = input.stride(1);
  params.gate_weight = gate_weight.const_data_ptr();
  params.gate_row = gate_weight.stride(0);
  params.gate_col = gate_weight.stride(1);
  params.up_weight = up_weight.const_data_ptr();
  params.up_row = up_weight.stride(0);
  params.up_col = up_weight.stride(1);
  params.gate_bias = data_or_null(gate_row);
  params.up_bias = data_or_null(up_row);
  params.output = result.output.mutable_data_ptr();
  params.gate = save ? result.gate.mutable_data_ptr() : nullptr;
  params.up = save ? result.up.mutable_data_ptr() : nullptr;
  params.m = sizes[0];
  params.n = sizes[1];
  params.k = input.size(1);
  params.activation = activation;
  params.dtype = to_dtype(dtype);
  params.precision = arithmetic.precision;
  params.batch_invariant = arithmetic.batch_invariant;
  backend::gated(params, launch.stream());
  return result;
}

#endif

// Gives what was computed for a matrix the leading dimensions of the input; leaves what has no elements.
Tensor with_leading(const Tensor& tensor, const Tensor& input) {
  if (input.dim() == 2 || tensor.dim() != 2) return tensor;
  return torch::stable::view(tensor, output_sizes(input, tensor.size(1)));
}

std::tuple<Tensor, Tensor, Tensor> linear_glu(Tensor input, Tensor gate_weight, Tensor up_weight,
                                              OptionalTensor gate_bias, OptionalTensor up_bias, std::string activation,
                                              std::string precision, bool batch_invariant, bool save) {
  const char* op = glu_name(activation);
  check_projections(op, input, gate_weight, up_weight);
  check_bias(op, "gate_bias", gate_bias, input, gate_weight.size(0));
  check_bias(op, "up_bias", up_bias, input, gate_weight.size(0));
  const Activation by_name = to_activation(op, activation);
  const Arithmetic arithmetic = to_arithmetic(op, precision, batch_invariant);
  const GatedOutput result =
      gated(as_matrix(input), gate_weight, up_weight, gate_bias, up_bias, by_name, arithmetic, save);
  return {with_leading(result.output, input), with_leading(result.gate, input), with_leading(result.up, input)};
}

// ---- backward ----

// The gradients of the factors before the activation, and of their biases.
struct FactorGrads {
  OptionalTensor both;      // (rows, 2 hidden): gate and up side by side, where both are wanted
  OptionalTensor gate, up;  // (rows, hidden)
  Tensor gate_bias, up_bias;
};

struct Needs {
  bool input, gate_weight, up_weight, gate_bias, up_bias;
};

// `grad` is that of the product. With `product` the product itself is computed again, over `grad`.
FactorGrads factor_grads(Tensor& grad, const Projections& saved, Activation activation, const Needs& needs,
                         bool product) {
  const ScalarType dtype = grad.scalar_type();
  const int64_t rows = grad.size(0), cols = grad.size(1);
  const bool gated = saved.up.has_value();
  const bool gate = needs.input || needs.gate_weight, up = gated && (needs.input || needs.up_weight);
  FactorGrads grads{{}, {}, {}, nothing(dtype, grad), nothing(dtype, grad)};
  if (gate && up) {
    grads.both = empty({rows, 2 * cols}, dtype, grad);
    grads.gate = torch::stable::narrow(*grads.both, 1, 0, cols);
    grads.up = torch::stable::narrow(*grads.both, 1, cols, cols);
  } else {
    if (gate) grads.gate = empty({rows, cols}, dtype, grad);
    if (up) grads.up = empty({rows, cols}, dtype, grad);
  }
  if (needs.gate_bias) grads.gate_bias = empty({cols}, dtype, grad);
  if (needs.up_bias) grads.up_bias = empty({cols}, dtype, grad);
  if (!gate && !up && !product && !needs.gate_bias && !needs.up_bias) return grads;
  const auto partials_if = [&](bool needed) {
    return needed ? empty({gated_partials(rows), cols}, acc_dtype(dtype), grad) : nothing(dtype, grad);
  };
  Tensor gate_partials = partials_if(needs.gate_bias), up_partials = partials_if(needs.up_bias);
  const auto written = [](OptionalTensor& tensor) { return tensor.has_value() ? tensor->mutable_data_ptr() : nullptr; };
  const auto written_if = [](bool needed, Tensor& tensor) { return needed ? tensor.mutable_data_ptr() : nullptr; };
  Tensor grad_holder, gate_holder, up_holder;
  GatedBackwardParams params{};
  params.rows = rows;
  params.cols = cols;
  params.grad = rows_of(grad, 1, grad_holder);
  params.gate = rows_of(saved.gate, 1, gate_holder);
  params.up = rows_of(saved.up, 1, up_holder);
  params.grad_gate = written(grads.gate);
  params.grad_up = written(grads.up);
  params.grad_row = grads.both.has_value() ? 2 * cols : cols;
  params.product = written_if(product, grad);
  params.gate_partials = written_if(needs.gate_bias, gate_partials);
  params.up_partials = written_if(needs.up_bias, up_partials);
  params.grad_gate_bias = written_if(needs.gate_bias, grads.gate_bias);
  params.grad_up_bias = written_if(needs.up_bias, grads.up_bias);
  params.activation = activation;
  params.dtype = to_dtype(dtype);
  Launch launch(grad);
  backend::gated_backward(params, launch.stream());
  return grads;
}

// Both weights as one of twice the rows, where the second's memory follows the first's: halves of one parameter.
OptionalTensor one_weight(const Projections& weights) {
  const Tensor &first = weights.gate, &second = *weights.up;
  const int64_t rows = first.size(0), size = first.element_size();
  const auto* const start = static_cast<const char*>(first.const_data_ptr());
  if (first.numel() == 0 || first.stride(0) != second.stride(0) || first.stride(1) != second.stride(1) ||
      start + rows * first.stride(0) * size != second.const_data_ptr()) {
    return std::nullopt;
  }
  // Two allocations may lie like that as well.
  int64_t bytes = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(first.get(), &bytes));
  const int64_t last = (2 * rows - 1) * first.stride(0) + (first.size(1) - 1) * first.stride(1);
  if ((first.storage_offset() + last + 1) * size > bytes) return std::nullopt;
  const int64_t sizes[] = {2 * rows, first.size(1)}, strides[] = {first.stride(0), first.stride(1)};
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(first.get(), 2, sizes, strides, 0, &handle));
  return Tensor(handle);
}

// The gradient of the input: one product of twice the length where both weights are one, else the second product takes
// the first as its residual.
Tensor input_grad(const FactorGrads& grads, const Projections& weights, Arithmetic arithmetic) {
  if (!weights.up.has_value()) return gemm(*grads.gate, swapped(weights.gate), {}, arithmetic).output;
  const OptionalTensor weight = one_weight(weights);
  if (weight.has_value()) return gemm(*grads.both, swapped(*weight), {}, arithmetic).output;
  Epilogue sum;
  sum.residual = gemm(*grads.gate, swapped(weights.gate), {}, arithmetic).output;
  return gemm(*grads.up, swapped(*weights.up), sum, arithmetic).output;
}

struct ProjectionGrads {
  Tensor input;  // Of input's shape; what is not needed has no elements.
  Tensor gate_weight, up_weight, gate_bias, up_bias;
};

// Everything before the product, whose gradient is `grad` (rows, hidden); see factor_grads.
ProjectionGrads projection_grads(Tensor& grad, const Tensor& input, const Projections& weights,
                                 const Projections& saved, Activation activation, Arithmetic arithmetic,
                                 const Needs& needs, bool product) {
  const FactorGrads grads = factor_grads(grad, saved, activation, needs, product);
  const Tensor none = nothing(grad.scalar_type(), grad);
  ProjectionGrads result{none, none, none, grads.gate_bias, grads.up_bias};
  if (needs.input) result.input = torch::stable::view(input_grad(grads, weights, arithmetic), sizes_of(input));
  const Tensor columns = swapped(as_matrix(input));
  if (needs.gate_weight) result.gate_weight = gemm(swapped(*grads.gate), columns, {}, arithmetic).output;
  if (needs.up_weight) result.up_weight = gemm(swapped(*grads.up), columns, {}, arithmetic).output;
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_glu_backward(
    Tensor grad_output, Tensor input, Tensor gate_weight, Tensor up_weight, Tensor gate, Tensor up,
    std::string activation, std::string precision, bool batch_invariant, bool need_input, bool need_gate_weight,
    bool need_up_weight, bool need_gate_bias, bool need_up_bias) {
  const char* op = "linear_glu_backward";
  check_projections(op, input, gate_weight, up_weight);
  check_output_like(op, "grad_output", grad_output, input, output_sizes(input, gate_weight.size(0)));
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  check_like(op, "gate", gate, "grad_output", grad_output);
  check_like(op, "up", up, "grad_output", grad_output);
  const Activation by_name = to_activation(op, activation);
  const Arithmetic arithmetic = to_arithmetic(op, precision, batch_invariant);
  Tensor grad = as_matrix(grad_output);
  const ProjectionGrads grads =
      projection_grads(grad, input, {gate_weight, up_weight}, {as_matrix(gate), as_matrix(up)}, by_name, arithmetic,
                       {need_input, need_gate_weight, need_up_weight, need_gate_bias, need_up_bias}, /*product=*/false);
  return {grads.input, grads.gate_weight, grads.up_weight, grads.gate_bias, grads.up_bias};
}

// ---- mlp ----

void check_mlp(const char* op, const Tensor& input, const Tensor& up_weight, const Tensor& down_weight,
               const OptionalTensor& gate_weight) {
  check_operands(op, input, "up_weight", up_weight);
  if (gate_weight.has_value()) check_like(op, "gate_weight", *gate_weight, "up_weight", up_weight);
  WARPWRIGHT_CHECK(down_weight.dim() == 2, op, "down_weight must have 2 dimensions, got ", down_weight.dim());
  check_same_device(op, "down_weight", down_weight, "input", input);
  check_same_dtype(op, "down_weight", down_weight, "input", input);
  WARPWRIGHT_CHECK(down_weight.size(1) == up_weight.size(0), op, "down_weight has ", down_weight.size(1),
                   " input features, up_weight has ", up_weight.size(0), " output features");
}

std::tuple<Tensor, Tensor, Tensor> mlp(Tensor input, Tensor up_weight, Tensor down_weight, OptionalTensor gate_weight,
                                       OptionalTensor up_bias, OptionalTensor down_bias, OptionalTensor gate_bias,
                                       OptionalTensor residual, std::string activation, std::string precision,
                                       bool batch_invariant, bool save) {
  const char* op = "mlp";
  check_mlp(op, input, up_weight, down_weight, gate_weight);
  check_bias(op, "up_bias", up_bias, input, up_weight.size(0));
  check_bias(op, "down_bias", down_bias, input, down_weight.size(0));
  WARPWRIGHT_CHECK(gate_weight.has_value() || !gate_bias.has_value(), op, "gate_bias must come with a gate_weight");
  if (gate_weight.has_value()) check_bias(op, "gate_bias", gate_bias, input, up_weight.size(0));
  Epilogue down;
  down.bias = down_bias;
  if (residual.has_value()) {
    check_output_like(op, "residual", *residual, input, output_sizes(input, down_weight.size(0)));
    check_same_dtype(op, "residual", *residual, "input", input);
    down.residual = as_matrix(*residual);
  }
  const Activation by_name = to_activation(op, activation);
  const Arithmetic arithmetic = to_arithmetic(op, precision, batch_invariant);
  const Tensor matrix = as_matrix(input), none = nothing(input.scalar_type(), input);
  GatedOutput hidden{none, none, none};
  if (gate_weight.has_value()) {
    hidden = gated(matrix, *gate_weight, up_weight, gate_bias, up_bias, by_name, arithmetic, save);
  } else {
    Epilogue up;
    up.bias = up_bias;
    up.activation = by_name;
    up.save_preact = save;
    const ProductOutput product = gemm(matrix, up_weight, up, arithmetic);
    hidden.output = product.output;
    if (save) hidden.up = needs_preact(by_name) ? product.preact : product.output;
  }
  const Tensor output = gemm(hidden.output, down_weight, down, arithmetic).output;
  return {with_leading(output, input), with_leading(hidden.gate, input), with_leading(hidden.up, input)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlp_backward(
    Tensor grad_output, Tensor input, Tensor up_weight, Tensor down_weight, OptionalTensor gate_weight,
    OptionalTensor gate, Tensor up, std::string activation, std::string precision, bool batch_invariant,
    bool need_input, bool need_up_weight, bool need_down_weight, bool need_gate_weight, bool need_up_bias,
    bool need_down_bias, bool need_gate_bias) {
  const char* op = "mlp_backward";
  check_mlp(op, input, up_weight, down_weight, gate_weight);
  check_output_like(op, "grad_output", grad_output, input, output_sizes(input, down_weight.size(0)));
  check_same_dtype(op, "grad_output", grad_output, "input", input);
  check_output_like(op, "up", up, input, output_sizes(input, up_weight.size(0)));
  check_same_dtype(op, "up", up, "input", input);
  WARPWRIGHT_CHECK(gate.has_value() == gate_weight.has_value(), op,
                   "gate must be given with a gate_weight and only then");
  if (gate.has_value()) check_like(op, "gate", *gate, "up", up);
  const Activation by_name = to_activation(op, activation);
  const Arithmetic arithmetic = to_arithmetic(op, precision, batch_invariant);

  const Tensor grad = as_matrix(grad_output);
  const bool gated = gate_weight.has_value(),
             before = need_input || need_up_weight || need_gate_weight || need_up_bias || need_gate_bias;
  // Without a gate `up` takes its place: it is what the activation is applied to.
  const Projections weights = gated ? Projections{*gate_weight, up_weight} : Projections{up_weight, std::nullopt};
  const Projections saved =
      gated ? Projections{as_matrix(*gate), as_matrix(up)} : Projections{as_matrix(up), std::nullopt};
  const Needs needs = gated ? Needs{need_input, need_gate_weight, need_up_weight, need_gate_bias, need_up_bias}
                            : Needs{need_input, need_up_weight, false, need_up_bias, false};
  // The product is what the down projection was applied to. Ungated and saved as a value, it is there already.
  const bool again = need_down_weight && (gated || needs_preact(by_name));
  Tensor hidden = before || again ? gemm(grad, swapped(down_weight), {}, arithmetic).output : saved.gate;
  const ProjectionGrads grads =
      projection_grads(hidden, input, weights, saved, by_name, arithmetic, needs, /*product=*/again);
  Tensor grad_down = nothing(input.scalar_type(), input);
  if (need_down_weight) {
    grad_down = gemm(swapped(grad), swapped(again ? hidden : saved.gate), {}, arithmetic).output;
  }
  const Tensor down_bias =
      epilogue_grads(grad, std::nullopt, Activation::kNone, down_weight.size(0), false, false, need_down_bias)
          .grad_bias;
  const Tensor &of_up = gated ? grads.up_weight : grads.gate_weight,
               &of_up_bias = gated ? grads.up_bias : grads.gate_bias;
  const auto of_gate = [&](const Tensor& grad) { return gated ? grad : nothing(input.scalar_type(), input); };
  return {grads.input, of_up, grad_down, of_gate(grads.gate_weight), of_up_bias, down_bias, of_gate(grads.gate_bias)};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("linear_glu", TORCH_BOX(&linear_glu));
  m.impl("linear_glu_backward", TORCH_BOX(&linear_glu_backward));
  m.impl("mlp", TORCH_BOX(&mlp));
  m.impl("mlp_backward", TORCH_BOX(&mlp_backward));
}

}  // namespace warpwright
