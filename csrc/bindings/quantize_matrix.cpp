// Bindings of quantize and dequantize: scales for a tensor, its rows, blocks or squares.

#include "bindings/common.h"
#include "kernels/quantize.h"

namespace warpwright {
namespace {

bool is_quantized_dtype(ScalarType dtype) {
  return dtype == ScalarType::Float8_e4m3fn || dtype == ScalarType::Float8_e5m2 || dtype == ScalarType::Char;
}

Granularity to_granularity(const char* op, const std::string& name) {
  if (name == "tensor") return Granularity::kTensor;
  if (name == "row") return Granularity::kRow;
  if (name == "block") return Granularity::kBlock;
  if (name == "square") return Granularity::kSquare;
  fail(op, "granularity must be one of tensor, row, block, square, got '", name, "'");
}

// A matrix' scales: how they are numbered, and their shape.
struct Scales {
  ScaleGrid grid;
  std::vector<int64_t> shape;
};

int64_t pieces(int64_t size, int64_t block) { return (size + block - 1) / block; }

// `sizes` of the tensor, of which the last is `cols` and the others make `rows`.
Scales scales_of(Granularity granularity, int64_t block, const std::vector<int64_t>& sizes, int64_t rows,
                 int64_t cols) {
  const int64_t all_rows = rows < 1 ? 1 : rows, all_cols = cols < 1 ? 1 : cols;
  std::vector<int64_t> shape(sizes.begin(), sizes.end() - 1);
  switch (granularity) {
    case Granularity::kTensor: return {{all_rows, all_cols, 1}, {}};
    case Granularity::kRow: shape.push_back(1); return {{1, all_cols, 1}, shape};
    case Granularity::kBlock: shape.push_back(pieces(cols, block)); return {{1, block, pieces(cols, block)}, shape};
    default: return {{block, block, pieces(cols, block)}, {pieces(rows, block), pieces(cols, block)}};
  }
}

struct Matrix {
  Granularity granularity;
  int64_t rows, cols;
};

Matrix check_matrix(const char* op, const Tensor& input, const std::string& granularity, int64_t block_size,
                    bool transposed) {
  WARPWRIGHT_CHECK(input.dim() >= 1, op, "input must have at least 1 dimension, got 0");
  const Granularity kind = to_granularity(op, granularity);
  WARPWRIGHT_CHECK(block_size == 32 || block_size == 64 || block_size == 128, op,
                   "block_size must be 32, 64 or 128, got ", block_size);
  const bool flat = kind != Granularity::kSquare && !transposed;
  WARPWRIGHT_CHECK(flat || input.dim() == 2, op,
                   "input must have 2 dimensions for squares or a transposed output, got ", input.dim());
  Matrix matrix{kind, 1, input.size(input.dim() - 1)};
  for (int64_t d = 0; d + 1 < input.dim(); ++d) matrix.rows *= input.size(d);
  return matrix;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> quantize(Tensor input, ScalarType dtype, std::string granularity,
                                                    int64_t block_size, std::optional<int64_t> seed, bool transposed) {
  const char* op = "quantize";
  const ScalarType from = input.scalar_type();
  WARPWRIGHT_CHECK(from == ScalarType::Float || from == ScalarType::Half || from == ScalarType::BFloat16, op,
                   "input must be float32, float16 or bfloat16, got ", dtype_name(from));
  WARPWRIGHT_CHECK(is_quantized_dtype(dtype), op,
                   "dtype must be torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8, got ", dtype_name(dtype));
  const Matrix matrix = check_matrix(op, input, granularity, block_size, transposed);
  const Scales scales = scales_of(matrix.granularity, block_size, sizes_of(input), matrix.rows, matrix.cols);
  Tensor quantized = empty(sizes_of(input), dtype, input), scale = empty(scales.shape, ScalarType::Float, input);
  Tensor other = nothing(dtype, input), other_scale = nothing(ScalarType::Float, input);
  QuantizeMatrixParams params{};
  Tensor holder, maxima, other_maxima;
  const bool beyond = matrix.granularity == Granularity::kTensor || matrix.granularity == Granularity::kRow;
  const auto fill = [&](QuantizeOutput& output, Tensor& codes, Tensor& scale_of, const ScaleGrid& grid, int64_t rows,
                        int64_t cols, Tensor& partials) {
    output.quantized = static_cast<uint8_t*>(codes.mutable_data_ptr());
    output.scale = static_cast<float*>(scale_of.mutable_data_ptr());
    output.grid = grid;
    partials = empty({beyond ? rows : 0, pieces(cols, kQuantizeTile)}, ScalarType::Int, input);
    output.maxima = static_cast<uint32_t*>(partials.mutable_data_ptr());
  };
  fill(params.straight, quantized, scale, scales.grid, matrix.rows, matrix.cols, maxima);
  if (transposed) {
    const std::vector<int64_t> sizes{matrix.cols, matrix.rows};
    const Scales turned = scales_of(matrix.granularity, block_size, sizes, matrix.cols, matrix.rows);
    other = empty(sizes, dtype, input);
    other_scale = empty(turned.shape, ScalarType::Float, input);
    fill(params.transposed, other, other_scale, turned.grid, matrix.cols, matrix.rows, other_maxima);
  }
  if (input.numel() == 0) {  // Of nothing the scale is that of zeros.
    torch::stable::fill_(scale, 1);
    torch::stable::fill_(other_scale, 1);
    return {quantized, scale, other, other_scale};
  }
  params.input = rows_of(input, 1, holder);
  params.rows = matrix.rows;
  params.cols = matrix.cols;
  params.block = block_size;
  params.seed = seed.value_or(0);
  params.stochastic = seed.has_value();
  params.granularity = matrix.granularity;
  params.input_dtype = to_dtype(from);
  params.quantized_dtype = to_dtype(dtype);
  Launch launch(input);
  backend::quantize(params, launch.stream());
  return {quantized, scale, other, other_scale};
}

Tensor dequantize(Tensor input, Tensor scale, std::string granularity, int64_t block_size, ScalarType dtype) {
  const char* op = "dequantize";
  WARPWRIGHT_CHECK(is_quantized_dtype(input.scalar_type()), op,
                   "input must be torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8, got ",
                   dtype_name(input.scalar_type()));
  check_float_dtype(op, "dtype", dtype);
  const Matrix matrix = check_matrix(op, input, granularity, block_size, false);
  const Scales scales = scales_of(matrix.granularity, block_size, sizes_of(input), matrix.rows, matrix.cols);
  check_same_device(op, "scale", scale, "input", input);
  WARPWRIGHT_CHECK(scale.scalar_type() == ScalarType::Float, op, "scale must be torch.float32, got ",
                   dtype_name(scale.scalar_type()));
  WARPWRIGHT_CHECK(sizes_of(scale) == scales.shape, op, "scale must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(scales.shape)), ", got ", shape_text(scale.sizes()));
  Tensor output = empty(sizes_of(input), dtype, input);
  if (output.numel() == 0) return output;
  Tensor holder;
  const Tensor scale_rows = torch::stable::contiguous(scale);
  DequantizeMatrixParams params{};
  params.input = rows_of(input, 1, holder);
  params.scale = static_cast<const float*>(scale_rows.const_data_ptr());
  params.grid = scales.grid;
  params.output = output.mutable_data_ptr();
  params.rows = matrix.rows;
  params.cols = matrix.cols;
  params.input_dtype = to_dtype(input.scalar_type());
  params.output_dtype = to_dtype(dtype);
  Launch launch(input);
  backend::dequantize(params, launch.stream());
  return output;
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("quantize", TORCH_BOX(&quantize));
  m.impl("dequantize", TORCH_BOX(&dequantize));
}

}  // namespace warpwright
