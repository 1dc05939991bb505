// Binding of the scaled family.

#include "kernels/scaled.h"

#include "bindings/common.h"

namespace warpwright {
namespace {

bool is_float8(ScalarType dtype) { return dtype == ScalarType::Float8_e4m3fn || dtype == ScalarType::Float8_e5m2; }

void check_operands(const char* op, const Tensor& input, const Tensor& other) {
  const bool int8 = input.scalar_type() == ScalarType::Char;
  WARPWRIGHT_CHECK(int8 || is_float8(input.scalar_type()), op,
                   "input must be torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8, got ",
                   dtype_name(input.scalar_type()));
  WARPWRIGHT_CHECK(input.dim() == 2, op, "input must have 2 dimensions, got ", input.dim());
  WARPWRIGHT_CHECK(other.dim() == 2, op, "other must have 2 dimensions, got ", other.dim());
  check_same_device(op, "other", other, "input", input);
  WARPWRIGHT_CHECK(int8 ? other.scalar_type() == ScalarType::Char : is_float8(other.scalar_type()), op,
                   "other must be ", int8 ? "torch.int8" : "torch.float8_e4m3fn or torch.float8_e5m2", ", as input is ",
                   dtype_name(input.scalar_type()), ", got ", dtype_name(other.scalar_type()));
  WARPWRIGHT_CHECK(other.size(1) == input.size(1), op, "other has ", other.size(1), " columns, input has ",
                   input.size(1));
  WARPWRIGHT_CHECK(!int8 || input.size(1) < kMostInt8Terms, op, "int8 operands must have fewer than ", kMostInt8Terms,
                   " columns, whose sum int32 holds, got ", input.size(1));
}

// The scales of an operand of `rows` rows. `tall`: whether kScaleBlock rows may share one.
Scales scales_of(const char* op, const char* name, const Tensor& scale, const Tensor& input, int64_t rows, bool tall) {
  const int64_t blocks = (input.size(1) + kScaleBlock - 1) / kScaleBlock;
  const int64_t bands = (rows + kScaleBlock - 1) / kScaleBlock;
  const bool may_block = is_float8(input.scalar_type());
  check_same_device(op, name, scale, "input", input);
  WARPWRIGHT_CHECK(scale.scalar_type() == ScalarType::Float, op, name, " must be torch.float32, got ",
                   dtype_name(scale.scalar_type()));
  Scales scales{static_cast<const float*>(scale.const_data_ptr()), 0, 0, 0, false};
  if (scale.numel() == 1 && scale.dim() <= 2) return scales;
  const auto is = [&](std::vector<int64_t> shape) { return sizes_of(scale) == shape; };
  if (is({rows}) || is({rows, 1})) {
    scales.row_stride = scale.stride(0);
  } else if (may_block && (is({rows, blocks}) || (tall && is({bands, blocks})))) {
    scales.row_stride = scale.stride(0);
    scales.block_stride = scale.stride(1);
    scales.row_shift = scale.size(0) == rows ? 0 : kScaleBlockShift;
    scales.by_block = true;
  } else {
    std::ostringstream shapes;
    shapes << "(" << rows << ",)" << (may_block ? ", " : " or ") << "(" << rows << ", 1)";
    if (may_block) shapes << (tall ? ", " : " or ") << "(" << rows << ", " << blocks << ")";
    if (may_block && tall) shapes << " or (" << bands << ", " << blocks << ")";
    fail(op, name, " must have one element or shape ", shapes.str(), ", got ", shape_text(scale.sizes()));
  }
  return scales;
}

void check_addend(const char* op, const char* name, const Tensor& tensor, const Tensor& input, ScalarType dtype,
                  const std::vector<int64_t>& sizes) {
  check_same_device(op, name, tensor, "input", input);
  WARPWRIGHT_CHECK(tensor.scalar_type() == dtype, op, name, " must have the dtype of the output (", dtype_name(dtype),
                   "), got ", dtype_name(tensor.scalar_type()));
  WARPWRIGHT_CHECK(sizes_of(tensor) == sizes, op, name, " must have shape ", shape_text(IntHeaderOnlyArrayRef(sizes)),
                   ", got ", shape_text(tensor.sizes()));
}

Tensor scaled_matmul(Tensor input, Tensor other, Tensor input_scale, Tensor other_scale, OptionalTensor bias,
                     OptionalTensor residual, std::string activation, ScalarType out_dtype) {
  const char* op = "scaled_matmul";
  check_operands(op, input, other);
  ScaledMatmulParams params{};
  params.m = input.size(0);
  params.n = other.size(0);
  params.k = input.size(1);
  params.input_scale = scales_of(op, "input_scale", input_scale, input, params.m, false);
  params.other_scale = scales_of(op, "other_scale", other_scale, input, params.n, true);
  WARPWRIGHT_CHECK(out_dtype == ScalarType::Float || out_dtype == ScalarType::Half || out_dtype == ScalarType::BFloat16,
                   op, "out_dtype must be float32, float16 or bfloat16, got ", dtype_name(out_dtype));
  const std::vector<int64_t> sizes{params.m, params.n};
  if (bias.has_value()) check_addend(op, "bias", *bias, input, out_dtype, {params.n});
  if (residual.has_value()) check_addend(op, "residual", *residual, input, out_dtype, sizes);
  params.activation = to_activation(op, activation);
  Tensor output = empty(sizes, out_dtype, input);
  if (output.numel() == 0) return output;
  Tensor input_holder, other_holder, residual_holder;
  params.input = rows_of(input, 1, input_holder);
  params.other = rows_of(other, 1, other_holder);
  params.residual = rows_of(residual, 1, residual_holder);
  const OptionalTensor bias_row = contiguous(bias);
  params.bias = data_or_null(bias_row);
  params.output = output.mutable_data_ptr();
  params.input_dtype = to_dtype(input.scalar_type());
  params.other_dtype = to_dtype(other.scalar_type());
  params.output_dtype = to_dtype(out_dtype);
  Launch launch(input);
  backend::scaled_matmul(params, launch.stream());
  return output;
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) { m.impl("scaled_matmul", TORCH_BOX(&scaled_matmul)); }

}  // namespace warpwright
