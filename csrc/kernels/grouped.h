// Params and launchers of the grouped product, for mixtures of experts: each group of rows is multiplied by a weight of
// its own. On the CPU the products are oneDNN's, through torch: bindings/onednn.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// Group g has the rows from ends[g - 1] (0 for the first group) up to ends[g]; the rows from the last end on belong to
// no group. Kernels read the ends on their own device, where nobody has checked them: one that lies below an earlier
// one or above `rows` counts as that.
struct RowGroups {
  const int32_t* ends;  // (count)
  int32_t count, rows;
};

// output[r] = activation(a[r] @ b[g].T + bias[g]) for each row r of group g, and zeros for the rows of no group. Both
// operands come with their strides, so that the forward product (b = weight) and the gradient of the input (a = grad,
// b = weight transposed) are one kernel. Strides count elements.
struct GroupedParams {
  const void* a;  // (rows, k)
  int64_t a_row, a_col;
  const void* b;  // (groups, n, k)
  int64_t b_group, b_row, b_col;
  const void* bias;  // (groups, n) contiguous, or null
  void* output;      // (rows, n) contiguous
  void* preact;      // (rows, n) contiguous, or null
  RowGroups groups;
  int64_t n, k;
  Activation activation;
  DType dtype;
  bool batch_invariant;  // See GemmParams.
};

// output[g] = a[rows of g].T @ b[rows of g]: the gradient of the weight. A group without rows has zeros.
struct GroupedWeightGradParams {
  const void* a;  // (rows, m)
  int64_t a_row, a_col;
  const void* b;  // (rows, n)
  int64_t b_row, b_col;
  void* output;  // (groups, m, n) contiguous
  RowGroups groups;
  int64_t m, n;
  DType dtype;
};

// output[g] = the sum of grad's rows of g: the gradient of the bias.
struct GroupedBiasGradParams {
  const void* grad;  // (rows, n)
  int64_t grad_row, grad_col;
  void* output;  // (groups, n) contiguous
  RowGroups groups;
  int64_t n;
  DType dtype;
};

}  // namespace warpwright

namespace warpwright::cuda {
void grouped_matmul(const GroupedParams& params, Stream stream);
void grouped_weight_grad(const GroupedWeightGradParams& params, Stream stream);
void grouped_bias_grad(const GroupedBiasGradParams& params, Stream stream);
}  // namespace warpwright::cuda
