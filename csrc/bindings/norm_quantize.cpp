// Bindings of the norm_quantize family.

#include "kernels/norm_quantize.h"

#include "bindings/norm_rows.h"

namespace warpwright {
namespace {

std::tuple<Tensor, Tensor, Tensor> norm_quantize(Tensor input, OptionalTensor residual, OptionalTensor weight,
                                                 OptionalTensor bias, double eps, double weight_offset, bool centred,
                                                 std::optional<int64_t> block_size, ScalarType dtype) {
  const char* op = centred ? "layer_norm_quantize" : "rms_norm_quantize";
  const ScalarType from = input.scalar_type();
  WARPWRIGHT_CHECK(from == ScalarType::Float || from == ScalarType::Half || from == ScalarType::BFloat16, op,
                   "input must be float32, float16 or bfloat16, got ", dtype_name(from));
  const NormExtent extent = norm_extent(op, input, 1);
  if (residual.has_value()) check_like(op, "residual", *residual, "input", input);
  check_affine(op, "weight", weight, input, extent);
  check_affine(op, "bias", bias, input, extent);
  WARPWRIGHT_CHECK(weight_offset == 0 || weight.has_value(), op, "weight must be given with weight_offset");
  const int64_t block = block_size.value_or(kNormQuantizeUnit);
  WARPWRIGHT_CHECK(block == kNormQuantizeUnit || block == 2 * kNormQuantizeUnit || block == 4 * kNormQuantizeUnit, op,
                   "block_size must be None, 32, 64 or 128, got ", block);
  WARPWRIGHT_CHECK(dtype == ScalarType::Float8_e4m3fn || dtype == ScalarType::Float8_e5m2 || dtype == ScalarType::Char,
                   op, "dtype must be torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8, got ", dtype_name(dtype));

  std::vector<int64_t> scale_shape = sizes_of(input);
  scale_shape.back() = block_size.has_value() ? (extent.cols + block - 1) / block : 1;
  Tensor quantized = empty(sizes_of(input), dtype, input);
  Tensor scale = empty(scale_shape, ScalarType::Float, input);
  Tensor sum = residual.has_value() ? empty(sizes_of(input), from, input) : nothing(from, input);
  if (scale.numel() == 0) return {quantized, scale, sum};
  Tensor input_holder, residual_holder;
  const OptionalTensor weight_row = contiguous(weight), bias_row = contiguous(bias);
  NormQuantizeParams params{};
  params.input = rows_of(input, 1, input_holder);
  params.residual = rows_of(residual, 1, residual_holder);
  params.weight = data_or_null(weight_row);
  params.bias = data_or_null(bias_row);
  params.sum = residual.has_value() ? sum.mutable_data_ptr() : nullptr;
  params.quantized = quantized.mutable_data_ptr();
  params.scale = scale.mutable_data_ptr();
  params.rows = extent.rows;
  params.cols = extent.cols;
  params.block = block_size.has_value() ? block : (extent.cols < 1 ? 1 : extent.cols);
  params.groups = scale_shape.back();
  params.eps = eps;
  params.weight_offset = weight_offset;
  params.centred = centred;
  params.dtype = to_dtype(from);
  params.quantized_dtype = to_dtype(dtype);
  Launch launch(input);
  backend::norm_quantize(params, launch.stream());
  return {quantized, scale, sum};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) { m.impl("norm_quantize", TORCH_BOX(&norm_quantize)); }

}  // namespace warpwright
