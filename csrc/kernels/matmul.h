// Params and launchers of the matmul family. On the CPU the product is oneDNN's, through torch: bindings/onednn.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// output[m][n] = activation(sum over k of a[m][k] * b[n][k] + bias[n] + residual[m][n]).
// Both operands come with two strides, so that the forward product (a = input, b = weight), the gradient of the input
// (a = grad, b = weight transposed) and that of the weight (both transposed) are one kernel.
struct GemmParams {
  const void* a;
  int64_t a_row, a_col;
  const void* b;
  int64_t b_row, b_col;
  const void* bias;      // (n), or null
  const void* residual;  // (m, n), or null
  int64_t residual_row, residual_col;
  void* output;  // (m, n) contiguous
  void* preact;  // (m, n) contiguous, or null
  int64_t m, n, k;
  Activation activation;
  DType dtype;  // of every tensor here
};

}  // namespace warpwright

namespace warpwright::cuda {
void gemm(const GemmParams& params, Stream stream);
}
