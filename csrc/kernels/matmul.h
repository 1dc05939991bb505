// Params and launchers of the matmul family. On the CPU the product is oneDNN's, through torch (bindings/onednn), but
// for batch_invariant.

#pragma once

#include "kernels/gemm_plan.h"

namespace warpwright {
// Batch dimensions that kernels walk by strides; the bindings merge those that share one.
inline constexpr int kMaxBatchDims = 3;

// output = output_scale * activation(alpha * a @ b.T + bias + beta * residual), for each matrix of the batch.
// Both operands come with two strides, so that the forward product (a = input, b = weight), the gradient of the input
// (a = grad, b = weight transposed) and that of the weight (both transposed) are one kernel. Strides count elements.
struct GemmParams {
  const void* a;  // (batch, m, k)
  int64_t a_batch[kMaxBatchDims], a_row, a_col;
  const void* b;  // (batch, n, k)
  int64_t b_batch[kMaxBatchDims], b_row, b_col;
  const void* bias;      // (n), or null
  const void* residual;  // (batch, m, n), or null
  int64_t residual_batch[kMaxBatchDims], residual_row, residual_col;
  void* output;  // (batch, m, n) contiguous, of output_dtype
  void* preact;  // the same of dtype, or null: what the activation is applied to, or its value: needs_preact
  int64_t batch[kMaxBatchDims];  // Sizes, the last one fastest.
  int64_t m, n, k;
  float alpha, beta, output_scale;
  Activation activation;
  DType dtype;         // of every tensor here but output
  DType output_dtype;  // dtype, float32, float16, bfloat16 or an 8-bit float
  Precision precision;
  bool batch_invariant;  // Whether an element of the output may depend on its row of a and on b alone, bit for bit.

  WARPWRIGHT_HOST_DEVICE int64_t matrices() const { return batch[0] * batch[1] * batch[2]; }
};

// Elements from the first matrix of a batch to matrix `index`.
WARPWRIGHT_HOST_DEVICE int64_t batch_offset(const GemmParams& p, const int64_t (&strides)[kMaxBatchDims],
                                            int64_t index) {
  const int64_t last = index % p.batch[2], rest = index / p.batch[2];
  return last * strides[2] + rest % p.batch[1] * strides[1] + rest / p.batch[1] * strides[0];
}

}  // namespace warpwright

namespace warpwright::cpu {
// a @ b.T alone, (batch, m, n) in float32 (float64 for float64), each element by the same steps whatever m is.
void gemm_fixed(const GemmParams& params, Stream);
}  // namespace warpwright::cpu

namespace warpwright::cuda {
// How the current device computes the product, and the product. With splits `partials` holds (splits, batch, m, n).
GemmQuestion gemm_question(const GemmParams& params);
GemmPlan gemm_plan(const GemmParams& params);
void gemm(const GemmParams& params, const GemmPlan& plan, float* partials, Stream stream);
}  // namespace warpwright::cuda
