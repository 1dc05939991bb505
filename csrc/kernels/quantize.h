// Params and launchers of the quantize family, and the two 8-bit formats.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// An 8-bit format: sign, exponent, kMantissa bits. Its smallest normal number is 2^(1 - kBias).
struct E4M3 {  // No infinity; only 0x7f and 0xff are NaN.
  static constexpr int kMantissa = 3, kBias = 7;
  static constexpr float kMax = 448.0f;
  static constexpr uint32_t kFirstNonFinite = 0x7f, kFirstNan = 0x7f;
};
struct E5M2 {  // As IEEE: infinity, and NaNs above it.
  static constexpr int kMantissa = 2, kBias = 15;
  static constexpr float kMax = 57344.0f;
  static constexpr uint32_t kFirstNonFinite = 0x7c, kFirstNan = 0x7d;
};
// What every NaN becomes, whatever its sign: the sign of a computed NaN differs from processor to processor.
inline constexpr uint32_t kFloat8Nan = 0x7f;

// The smallest normal float32. A scale below it would have lost digits, or be zero.
inline constexpr float kMinScale = 0x1p-126f;

// Rows are cut into `groups` pieces of `block` elements, the last one shorter; each has its scale.
struct QuantizeParams {
  Rows input;       // (rows, cols)
  void* quantized;  // (rows, cols) contiguous, one byte an element
  void* scale;      // (rows, groups) float, contiguous
  int64_t rows, cols, block, groups;
  DType input_dtype, quantized_dtype;
};

struct DequantizeParams {
  Rows input;    // (rows, cols), one byte an element
  Rows scale;    // (rows, groups) float
  void* output;  // (rows, cols) contiguous
  int64_t rows, cols, block, groups;
  DType input_dtype, output_dtype;
};

// int8 from -127 to 127: as far to one side as to the other.
struct Int8 {
  static constexpr float kMax = 127.0f;
};

enum class Granularity : int32_t { kTensor, kRow, kBlock, kSquare };

// The matrix is cut into tiles; blocks and squares of kUnit, 2 * kUnit or 4 * kUnit elements lie in one of them.
inline constexpr int kQuantizeTile = 128, kQuantizeUnit = 32;
inline constexpr int kQuantizeUnits = kQuantizeTile / kQuantizeUnit;

// Which scale an element has: number (row / block_rows) * per_row + col / block_cols.
struct ScaleGrid {
  int64_t block_rows, block_cols, per_row;
  WARPWRIGHT_HOST_DEVICE int64_t at(int64_t row, int64_t col) const {
    return row / block_rows * per_row + col / block_cols;
  }
};

struct QuantizeOutput {
  uint8_t* quantized;  // (rows, cols) contiguous, or of the transposed matrix; null: not wanted
  float* scale;        // as `grid` numbers them
  ScaleGrid grid;
  uint32_t* maxima;  // (rows, tiles in a row): largest magnitudes as bits, where a scale goes beyond a tile on a GPU
};

struct QuantizeMatrixParams {
  Rows input;  // (rows, cols)
  QuantizeOutput straight, transposed;
  int64_t rows, cols, block;
  int64_t seed;
  bool stochastic;
  Granularity granularity;
  DType input_dtype, quantized_dtype;
};

struct DequantizeMatrixParams {
  Rows input;  // (rows, cols), one byte an element
  const float* scale;
  ScaleGrid grid;
  void* output;  // (rows, cols) contiguous
  int64_t rows, cols;
  DType input_dtype, output_dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(quantize, QuantizeMatrixParams)
WARPWRIGHT_DECLARE_LAUNCHER(dequantize, DequantizeMatrixParams)
WARPWRIGHT_DECLARE_LAUNCHER(quantize_fp8, QuantizeParams)
WARPWRIGHT_DECLARE_LAUNCHER(dequantize_fp8, DequantizeParams)
