// Bindings of the quantize family.

#include "kernels/quantize.h"

#include "bindings/common.h"

namespace warpwright {
namespace {

// How rows of the last dimension are cut, and the shape of the scales that belong to them.
struct Groups {
  int64_t rows = 0, cols, block, count;
  std::vector<int64_t> scale_shape;
};

Groups groups_of(const char* op, const Tensor& input, std::optional<int64_t> block_size) {
  WARPWRIGHT_CHECK(input.dim() >= 1, op, "input must have at least 1 dimension, got 0");
  WARPWRIGHT_CHECK(block_size.value_or(1) >= 1, op, "block_size must be None or positive, got ", *block_size);
  Groups groups{};
  groups.cols = input.size(input.dim() - 1);
  // A block longer than the row is the row. An empty row has one scale, or no block at all.
  const int64_t row = groups.cols < 1 ? 1 : groups.cols;
  groups.block = !block_size.has_value() || *block_size > row ? row : *block_size;
  groups.count = block_size.has_value() ? (groups.cols + groups.block - 1) / groups.block : 1;
  groups.scale_shape = sizes_of(input);
  groups.scale_shape.back() = groups.count;
  groups.rows = 1;
  for (int64_t d = 0; d + 1 < input.dim(); ++d) groups.rows *= input.size(d);
  return groups;
}

bool is_float8(ScalarType dtype) { return dtype == ScalarType::Float8_e4m3fn || dtype == ScalarType::Float8_e5m2; }

std::tuple<Tensor, Tensor> quantize_fp8(Tensor input, std::optional<int64_t> block_size, ScalarType dtype) {
  const char* op = "quantize_fp8";
  const ScalarType from = input.scalar_type();
  WARPWRIGHT_CHECK(from == ScalarType::Float || from == ScalarType::Half || from == ScalarType::BFloat16, op,
                   "input must be float32, float16 or bfloat16, got ", dtype_name(from));
  WARPWRIGHT_CHECK(is_float8(dtype), op, "dtype must be torch.float8_e4m3fn or torch.float8_e5m2, got ",
                   dtype_name(dtype));
  const Groups groups = groups_of(op, input, block_size);
  Tensor quantized = empty(sizes_of(input), dtype, input);
  Tensor scale = empty(groups.scale_shape, ScalarType::Float, input);
  if (scale.numel() == 0) return {quantized, scale};
  Tensor holder;
  QuantizeParams params{};
  params.input = rows_of(input, 1, holder);
  params.quantized = quantized.mutable_data_ptr();
  params.scale = scale.mutable_data_ptr();
  params.rows = groups.rows;
  params.cols = groups.cols;
  params.block = groups.block;
  params.groups = groups.count;
  params.input_dtype = to_dtype(from);
  params.quantized_dtype = to_dtype(dtype);
  Launch launch(input);
  backend::quantize_fp8(params, launch.stream());
  return {quantized, scale};
}

Tensor dequantize_fp8(Tensor input, Tensor scale, std::optional<int64_t> block_size, ScalarType dtype) {
  const char* op = "dequantize_fp8";
  WARPWRIGHT_CHECK(is_float8(input.scalar_type()), op, "input must be torch.float8_e4m3fn or torch.float8_e5m2, got ",
                   dtype_name(input.scalar_type()));
  check_float_dtype(op, "dtype", dtype);
  const Groups groups = groups_of(op, input, block_size);
  check_same_device(op, "scale", scale, "input", input);
  WARPWRIGHT_CHECK(scale.scalar_type() == ScalarType::Float, op, "scale must be torch.float32, got ",
                   dtype_name(scale.scalar_type()));
  WARPWRIGHT_CHECK(sizes_of(scale) == groups.scale_shape, op, "scale must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(groups.scale_shape)), ", got ", shape_text(scale.sizes()));
  Tensor output = empty(sizes_of(input), dtype, input);
  if (output.numel() == 0) return output;
  Tensor input_holder, scale_holder;
  DequantizeParams params{};
  params.input = rows_of(input, 1, input_holder);
  params.scale = rows_of(scale, 1, scale_holder);
  params.output = output.mutable_data_ptr();
  params.rows = groups.rows;
  params.cols = groups.cols;
  params.block = groups.block;
  params.groups = groups.count;
  params.input_dtype = to_dtype(input.scalar_type());
  params.output_dtype = to_dtype(dtype);
  Launch launch(input);
  backend::dequantize_fp8(params, launch.stream());
  return output;
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("quantize_fp8", TORCH_BOX(&quantize_fp8));
  m.impl("dequantize_fp8", TORCH_BOX(&dequantize_fp8));
}

}  // namespace warpwright
