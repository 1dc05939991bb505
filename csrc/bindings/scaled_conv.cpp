// Binding of the scaled_conv family.

#include "kernels/scaled_conv.h"

#include "bindings/conv.h"

namespace warpwright {
namespace {

bool is_float8(ScalarType dtype) { return dtype == ScalarType::Float8_e4m3fn || dtype == ScalarType::Float8_e5m2; }
bool is_8_bit(ScalarType dtype) { return is_float8(dtype) || dtype == ScalarType::Char; }
bool is_wide(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
}
constexpr const char* kWide = "float32, float16 or bfloat16";
constexpr const char* k8Bit = "torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8";

void check_dtypes(const char* op, const Tensor& input, const Tensor& weight) {
  const ScalarType from = input.scalar_type();
  const bool int8 = from == ScalarType::Char;
  WARPWRIGHT_CHECK(is_8_bit(from), op, "input must be ", k8Bit, ", got ", dtype_name(from));
  WARPWRIGHT_CHECK(int8 ? weight.scalar_type() == ScalarType::Char : is_float8(weight.scalar_type()), op,
                   "weight must be ", int8 ? "torch.int8" : "torch.float8_e4m3fn or torch.float8_e5m2",
                   ", as input is ", dtype_name(from), ", got ", dtype_name(weight.scalar_type()));
}

void check_terms(const char* op, const Tensor& input, const Tensor& weight) {
  int64_t terms = 1;
  for (int64_t d = 1; d < weight.dim(); ++d) terms *= weight.size(d);
  WARPWRIGHT_CHECK(input.scalar_type() != ScalarType::Char || terms < kMostInt8Terms, op,
                   "int8 filters must have fewer than ", kMostInt8Terms, " elements, whose sum int32 holds, got ",
                   terms);
}

// The data of a scale, which has one element or one for each filter.
const float* scale_of(const char* op, const char* name, const Tensor& scale, const Tensor& input) {
  check_same_device(op, name, scale, "input", input);
  WARPWRIGHT_CHECK(scale.scalar_type() == ScalarType::Float, op, name, " must be torch.float32, got ",
                   dtype_name(scale.scalar_type()));
  return static_cast<const float*>(scale.const_data_ptr());
}
const float* one_scale_of(const char* op, const char* name, const Tensor& scale, const Tensor& input) {
  const float* const data = scale_of(op, name, scale, input);
  WARPWRIGHT_CHECK(scale.numel() == 1, op, name, " must have one element, got ", shape_text(scale.sizes()));
  return data;
}
// The scale that goes with the 8-bit tensor `of`, which is `dtype`; none otherwise.
const float* scale_with(const char* op, const char* name, const OptionalTensor& scale, const char* of, ScalarType dtype,
                        const Tensor& input) {
  WARPWRIGHT_CHECK(scale.has_value() == is_8_bit(dtype), op, name, " must be given where ", of,
                   " has 8 bits and only then, ", of, " is ", dtype_name(dtype));
  return scale.has_value() ? one_scale_of(op, name, *scale, input) : nullptr;
}

void check_weight_scale(const char* op, const Tensor& scale, const Tensor& input, int64_t filters,
                        ScaledConvParams& params) {
  params.weight_scale = scale_of(op, "weight_scale", scale, input);
  if (scale.numel() == 1) return;
  const std::vector<int64_t> sizes = sizes_of(scale);
  const bool fits = sizes == std::vector<int64_t>{filters} || sizes == std::vector<int64_t>{filters, 1};
  WARPWRIGHT_CHECK(fits, op, "weight_scale must have one element or shape (", filters, ",) or (", filters, ", 1), got ",
                   shape_text(scale.sizes()));
  params.weight_scale_stride = scale.stride(0);
}

void check_bias(const char* op, const Tensor& bias, const Tensor& input, int64_t filters) {
  check_same_device(op, "bias", bias, "input", input);
  WARPWRIGHT_CHECK(is_wide(bias.scalar_type()), op, "bias must be ", kWide, ", got ", dtype_name(bias.scalar_type()));
  WARPWRIGHT_CHECK(bias.dim() == 1 && bias.size(0) == filters, op, "bias must have shape (", filters, ",), got ",
                   shape_text(bias.sizes()));
}

void check_residual(const char* op, const Tensor& residual, const ConvCall& call) {
  const ScalarType dtype = residual.scalar_type();
  check_same_device(op, "residual", residual, "input", call.input);
  WARPWRIGHT_CHECK(is_wide(dtype) || is_8_bit(dtype), op,
                   "residual must be float32, float16, bfloat16, torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8, "
                   "got ",
                   dtype_name(dtype));
  WARPWRIGHT_CHECK(sizes_of(residual) == call.output_sizes, op, "residual must have the shape of the output ",
                   shape_text(IntHeaderOnlyArrayRef(call.output_sizes)), ", got ", shape_text(residual.sizes()));
}

Tensor scaled_convolution(Tensor input, Tensor weight, Tensor input_scale, Tensor weight_scale, OptionalTensor bias,
                          OptionalTensor residual, OptionalTensor residual_scale, OptionalTensor output_scale,
                          std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                          int64_t groups, std::string activation, ScalarType out_dtype) {
  const std::string name = "scaled_" + conv_name(weight, false, "");
  const char* op = name.c_str();
  check_dtypes(op, input, weight);
  const ConvCall call = check_conv_shapes(op, input, weight, {stride, padding, dilation, false, {}, groups});
  check_terms(op, input, weight);
  const int64_t filters = call.output_sizes[1];
  ScaledConvParams params{};
  params.input_scale = one_scale_of(op, "input_scale", input_scale, input);
  check_weight_scale(op, weight_scale, input, filters, params);
  WARPWRIGHT_CHECK(
      is_wide(out_dtype) || is_8_bit(out_dtype), op,
      "out_dtype must be float32, float16, bfloat16, torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8, "
      "got ",
      dtype_name(out_dtype));
  params.output_scale = scale_with(op, "output_scale", output_scale, "out_dtype", out_dtype, input);
  if (bias.has_value()) check_bias(op, *bias, input, filters);
  if (residual.has_value()) check_residual(op, *residual, call);
  const ScalarType residual_dtype = residual.has_value() ? residual->scalar_type() : ScalarType::Float;
  WARPWRIGHT_CHECK(residual.has_value() || !residual_scale.has_value(), op, "residual_scale must come with a residual");
  params.residual_scale = scale_with(op, "residual_scale", residual_scale, "residual", residual_dtype, input);
  const Activation activation_code = to_activation(op, activation);

  Tensor output = empty_in_format(call.output_sizes, call.channels_last, out_dtype, input);
  if (output.numel() == 0) return output;
#if defined(WARPWRIGHT_BACKEND_CPU)
  // The kernel takes runs of channels: to move the bytes once is faster than to gather them for each tap.
  if (input.size(1) > 1 && input.stride(1) != 1) input = to_format(input, true);
#endif
  params.conv = conv_params(call, input, weight, output);
  params.conv.activation = activation_code;
  if (residual.has_value()) params.conv.residual = as_conv_tensor(*residual);
  const OptionalTensor bias_row = contiguous(bias);
  params.conv.bias = data_or_null(bias_row);
  params.input_dtype = to_dtype(input.scalar_type());
  params.weight_dtype = to_dtype(weight.scalar_type());
  params.bias_dtype = bias.has_value() ? to_dtype(bias->scalar_type()) : DType::kFloat32;
  params.residual_dtype = to_dtype(residual_dtype);
  params.output_dtype = to_dtype(out_dtype);
  Launch launch(input);
  backend::scaled_convolution(params, launch.stream());
  return output;
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) { m.impl("scaled_convolution", TORCH_BOX(&scaled_convolution)); }

}  // namespace warpwright
