// Bindings of the packed family.

#include "kernels/packed.h"

#include "bindings/gemm.h"

namespace warpwright {
namespace {

// The tensors of a packed weight (n, k), as every op here takes them.
struct PackedTensors {
  const Tensor &packed, &scale;
  const OptionalTensor& zero;
  int64_t bits;
  std::optional<int64_t> group_size;
  int64_t k;

  int64_t n() const { return packed.size(0); }
};

// Errors name the public function that takes this many bits.
const char* linear_name(int64_t bits) {
  return bits == 4 ? "linear_w4a16" : bits == 8 ? "linear_w8a16" : "linear_packed";
}

void check_group_tensor(const char* op, const char* name, const Tensor& tensor, const PackedTensors& w) {
  check_same_device(op, name, tensor, "packed", w.packed);
  const int64_t size = w.group_size.value_or(1);
  const std::vector<int64_t> expected = {w.n(), w.group_size.has_value() ? (w.k + size - 1) / size : 1};
  WARPWRIGHT_CHECK(sizes_of(tensor) == expected, op, name, " must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(expected)), ", got ", shape_text(tensor.sizes()));
}

void check_format(const char* op, int64_t bits, std::optional<int64_t> group_size) {
  WARPWRIGHT_CHECK(bits == 4 || bits == 8, op, "bits must be 4 or 8, got ", bits);
  const int64_t size = group_size.value_or(kPackedPiece);
  WARPWRIGHT_CHECK(size >= kPackedPiece && (size & (size - 1)) == 0, op,
                   "group_size must be None or a power of two of at least 32, got ", size);
}

void check_packed(const char* op, const PackedTensors& w) {
  check_format(op, w.bits, w.group_size);
  WARPWRIGHT_CHECK(w.packed.scalar_type() == ScalarType::Byte, op,
                   "packed must be torch.uint8, as warpwright.ops.pack_weights makes it, got ",
                   dtype_name(w.packed.scalar_type()));
  WARPWRIGHT_CHECK(w.packed.dim() == 2, op, "packed must have 2 dimensions, got ", w.packed.dim());
  WARPWRIGHT_CHECK(w.k >= 0, op, "in_features must not be negative, got ", w.k);
  WARPWRIGHT_CHECK(w.packed.size(1) == packed_bytes(w.k, w.bits), op, "packed must have ", packed_bytes(w.k, w.bits),
                   " bytes in a row of ", w.k, " input features, got ", w.packed.size(1));
  check_float(op, "scale", w.scale);
  check_group_tensor(op, "scale", w.scale, w);
  if (!w.zero.has_value()) return;
  WARPWRIGHT_CHECK(w.zero->scalar_type() == ScalarType::Byte, op, "zero must be torch.uint8, got ",
                   dtype_name(w.zero->scalar_type()));
  check_group_tensor(op, "zero", *w.zero, w);
}

PackedWeight packed_weight(const PackedTensors& w) {
  PackedWeight weight{};
  weight.data = w.packed.const_data_ptr();
  weight.row = w.packed.stride(0);
  weight.col = w.packed.stride(1);
  weight.scale = w.scale.const_data_ptr();
  weight.scale_row = w.scale.stride(0);
  weight.scale_col = w.scale.stride(1);
  weight.zero = data_or_null(w.zero);
  if (w.zero.has_value()) {
    weight.zero_row = w.zero->stride(0);
    weight.zero_col = w.zero->stride(1);
  }
  weight.n = w.n();
  weight.k = w.k;
  weight.bits = static_cast<int32_t>(w.bits);
  weight.group_shift = 62;  // The whole row.
  if (w.group_size.has_value()) weight.group_shift = __builtin_ctzll(static_cast<unsigned long long>(*w.group_size));
  weight.dtype = to_dtype(w.scale.scalar_type());
  return weight;
}

Tensor dequantized(const PackedTensors& w) {
  Tensor output = empty({w.n(), w.k}, w.scale.scalar_type(), w.packed);
  if (output.numel() == 0) return output;
  Launch launch(w.packed);
  backend::dequantize_packed({packed_weight(w), output.mutable_data_ptr()}, launch.stream());
  return output;
}

// input (m, k) times the weight, and what follows.
ProductOutput product(const Tensor& input, const PackedTensors& w, const Epilogue& epilogue, Arithmetic arithmetic) {
  LinearPackedParams params{matrix_params(input, w.n(), arithmetic), packed_weight(w)};
  if (!backend::linear_packed_takes(params)) return gemm(input, dequantized(w), epilogue, arithmetic);
  const std::vector<int64_t> sizes = {params.gemm.m, params.gemm.n};
#if defined(WARPWRIGHT_BACKEND_CPU)
  Tensor sums = empty(sizes, ScalarType::Float, input);
  params.gemm.output = sums.mutable_data_ptr();
  backend::linear_packed(params, nullptr);
  return finish_product(sums, epilogue, input.scalar_type(), false);
#else
  const ProductOutput result = empty_product(sizes, epilogue, input);
  const OptionalTensor bias = contiguous(epilogue.bias);
  set_epilogue(params.gemm, epilogue, bias, epilogue.residual, result);
  Launch launch(input);
  backend::linear_packed(params, launch.stream());
  return result;
#endif
}

std::tuple<Tensor, Tensor> linear_packed(Tensor input, Tensor packed, Tensor scale, OptionalTensor zero, int64_t bits,
                                         std::optional<int64_t> group_size, OptionalTensor bias,
                                         OptionalTensor residual, std::string activation, std::string precision,
                                         bool batch_invariant, bool save_preact) {
  const char* op = linear_name(bits);
  check_float(op, "input", input);
  WARPWRIGHT_CHECK(input.dim() >= 1, op, "input must have at least 1 dimension, got 0");
  const PackedTensors weight{packed, scale, zero, bits, group_size, input.size(input.dim() - 1)};
  check_packed(op, weight);
  check_same_device(op, "packed", packed, "input", input);
  check_same_dtype(op, "scale", scale, "input", input);
  Epilogue epilogue;
  epilogue.activation = to_activation(op, activation);
  epilogue.save_preact = save_preact;
  check_bias(op, "bias", bias, input, weight.n());
  epilogue.bias = bias;
  const std::vector<int64_t> sizes = output_sizes(input, weight.n());
  if (residual.has_value()) {
    check_output_like(op, "residual", *residual, input, sizes);
    check_same_dtype(op, "residual", *residual, "input", input);
    epilogue.residual = as_matrix(*residual);
  }
  ProductOutput result = product(as_matrix(input), weight, epilogue, to_arithmetic(op, precision, batch_invariant));
  if (input.dim() != 2) {
    result.output = torch::stable::view(result.output, sizes);
    if (epilogue.keeps_preact(input.scalar_type())) result.preact = torch::stable::view(result.preact, sizes);
  }
  return {result.output, result.preact};
}

std::tuple<Tensor, Tensor, Tensor> linear_packed_backward(Tensor grad_output, Tensor packed, Tensor scale,
                                                          OptionalTensor zero, OptionalTensor saved, int64_t bits,
                                                          std::optional<int64_t> group_size, int64_t in_features,
                                                          std::string activation_name, std::string precision,
                                                          bool batch_invariant, bool need_input, bool need_bias,
                                                          bool need_residual) {
  const char* op = "linear_packed_backward";
  check_float(op, "grad_output", grad_output);
  WARPWRIGHT_CHECK(grad_output.dim() >= 1, op, "grad_output must have at least 1 dimension, got 0");
  const PackedTensors weight{packed, scale, zero, bits, group_size, in_features};
  check_packed(op, weight);
  check_same_device(op, "packed", packed, "grad_output", grad_output);
  check_same_dtype(op, "scale", scale, "grad_output", grad_output);
  const Activation activation = to_activation(op, activation_name);
  const Arithmetic arithmetic = to_arithmetic(op, precision, batch_invariant);
  WARPWRIGHT_CHECK(grad_output.size(grad_output.dim() - 1) == weight.n(), op, "packed has ", weight.n(),
                   " output features, grad_output has ", grad_output.size(grad_output.dim() - 1));
  check_saved(op, saved, activation, grad_output);
  if (saved.has_value()) saved = as_matrix(*saved);

  const ScalarType dtype = grad_output.scalar_type();
  const EpilogueGrads grads = epilogue_grads(as_matrix(grad_output), saved, activation, weight.n(), false,
                                             need_input || need_residual, need_bias);
  Tensor grad_input = nothing(dtype, grad_output), grad_residual = nothing(dtype, grad_output);
  if (need_input) {
    // Training has many rows: the weight is dequantized once, as for a forward pass of many.
    grad_input = gemm(grads.grad_preact, torch::stable::transpose(dequantized(weight), 0, 1), {}, arithmetic).output;
    if (grad_output.dim() != 2) grad_input = torch::stable::view(grad_input, output_sizes(grad_output, in_features));
  }
  if (need_residual) grad_residual = residual_grad(grads.grad_preact, activation, sizes_of(grad_output));
  return {grad_input, grads.grad_bias, grad_residual};
}

Tensor dequantize_packed(Tensor packed, Tensor scale, OptionalTensor zero, int64_t bits,
                         std::optional<int64_t> group_size, int64_t in_features) {
  const PackedTensors weight{packed, scale, zero, bits, group_size, in_features};
  check_packed("dequantize_packed", weight);
  return dequantized(weight);
}

std::tuple<Tensor, Tensor, Tensor> quantize_packed(Tensor weight, int64_t bits, std::optional<int64_t> group_size,
                                                   bool symmetric) {
  const char* op = "quantize_packed";
  check_float(op, "weight", weight);
  WARPWRIGHT_CHECK(weight.dim() == 2, op, "weight must have 2 dimensions, got ", weight.dim());
  check_format(op, bits, group_size);
  Tensor holder;
  QuantizePackedParams params{};
  params.weight = rows_of(weight, 1, holder);
  params.n = weight.size(0);
  params.k = weight.size(1);
  params.group_size = group_size.value_or(packed_bytes(params.k, 8));
  params.groups = group_size.has_value() ? (params.k + *group_size - 1) / *group_size : 1;
  params.bits = static_cast<int32_t>(bits);
  params.dtype = to_dtype(weight.scalar_type());
  Tensor data = empty({params.n, packed_bytes(params.k, bits)}, ScalarType::Byte, weight);
  Tensor scale = empty({params.n, params.groups}, weight.scalar_type(), weight);
  Tensor zero =
      symmetric ? nothing(ScalarType::Byte, weight) : empty({params.n, params.groups}, ScalarType::Byte, weight);
  if (params.n * params.groups == 0) return {data, scale, zero};
  params.data = static_cast<uint8_t*>(data.mutable_data_ptr());
  params.scale = scale.mutable_data_ptr();
  params.zero = symmetric ? nullptr : static_cast<uint8_t*>(zero.mutable_data_ptr());
  Launch launch(weight);
  backend::quantize_packed(params, launch.stream());
  return {data, scale, zero};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("quantize_packed", TORCH_BOX(&quantize_packed));
  m.impl("linear_packed", TORCH_BOX(&linear_packed));
  m.impl("linear_packed_backward", TORCH_BOX(&linear_packed_backward));
  m.impl("dequantize_packed", TORCH_BOX(&dequantize_packed));
}

}  // namespace warpwright
