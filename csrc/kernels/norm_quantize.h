// Params and launcher of the norm_quantize family: an RMS or layer norm whose result leaves in 8 bits.

#pragma once

#include "kernels/quantize.h"

namespace warpwright {

// Blocks of a row that share a scale have this many elements, or twice, or four times as many.
inline constexpr int64_t kNormQuantizeUnit = 32;
// The largest int8: as far from zero as the smallest that is used.
inline constexpr float kMaxInt8 = 127.0f;

// With h = input + residual: the norm of h, in float32, then as kernels/quantize.h has it.
struct NormQuantizeParams {
  Rows input;          // (rows, cols)
  Rows residual;       // (rows, cols), data null without one
  const void* weight;  // (cols) contiguous, or null
  const void* bias;    // (cols) contiguous, or null
  void* sum;           // (rows, cols) contiguous, null without a residual
  void* quantized;     // (rows, cols) contiguous, one byte an element
  void* scale;         // (rows, groups) float, contiguous
  int64_t rows, cols;
  int64_t block;  // Elements that share a scale: a block, or at least cols.
  int64_t groups;
  double eps, weight_offset;
  bool centred;
  DType dtype;            // of input, residual, weight, bias, sum
  DType quantized_dtype;  // float8_e4m3fn, float8_e5m2 or int8
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(norm_quantize, NormQuantizeParams)
