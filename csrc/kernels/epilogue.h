// What follows a matmul or a convolution: bias, residual and activation, and its backward. Shared by both families.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// output = output_scale * activation(alpha * product + bias + beta * residual), one pass. The CUDA kernels do this in
// their own registers; on the CPU it runs over a product that oneDNN wrote, where oneDNN cannot fuse it.
struct EpilogueParams {
  const void* product;             // (outer, channels, inner) contiguous; may be `output` or `preact` itself
  const void* bias;                // (channels), or null
  const void* residual;            // like product but of `dtype`, or null
  void* output;                    // like product but of `output_dtype`
  void* preact;                    // of `dtype`, or null: what the activation is applied to, or its value: needs_preact
  int64_t outer, channels, inner;  // inner is 1 when channels come last
  double alpha, beta, output_scale;
  Activation activation;
  DType product_dtype;  // dtype, or float32
  DType dtype;          // of bias, residual, preact
  DType output_dtype;   // dtype; with a product in float32 any other, too
};

inline constexpr int64_t kMaxEpiloguePartials = 128;

// grad_preact = scale * grad_output * activation'(saved), and grad_bias: its sum over everything but the channels, in
// two stages of a fixed split. A tensor is read as (rows, cols) with the channels either in the columns (linear,
// channels_last) or in the rows (NCHW: row n * channels + c).
struct EpilogueBackwardParams {
  Rows grad_output;   // (rows, cols)
  Rows saved;         // (rows, cols), data null without an activation: see activation_grad
  void* grad_preact;  // (rows, cols) contiguous, or null
  void* grad_bias;    // (channels), or null
  void* partials;     // (epilogue_partials, channels) float, double for float64; null without grad_bias
  int64_t rows, cols, channels;
  bool channels_in_rows;
  double scale;
  Activation activation;
  DType dtype;
};

// Rows of `partials`.
inline constexpr int64_t epilogue_partials(int64_t rows, int64_t channels, bool channels_in_rows) {
  if (channels_in_rows) return channels == 0 ? 0 : rows / channels;
  return rows < kMaxEpiloguePartials ? rows : kMaxEpiloguePartials;
}

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(epilogue_backward, EpilogueBackwardParams)
namespace warpwright::cpu {
void epilogue_forward(const EpilogueParams& params, Stream);
}
