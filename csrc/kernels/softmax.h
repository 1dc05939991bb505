// Params and launchers of the softmax family: softmax and its logarithm, one pair of kernels.

#pragma once

#include "kernels/common.h"

namespace warpwright {

enum class SoftmaxMask : int32_t { kNone, kKeep, kAdd };  // Nothing, bytes that say what is kept, or terms of `dtype`.

// What is left of each row: the mask, and the causal bound.
struct SoftmaxBounds {
  Rows mask;  // (rows, cols), data null without one
  SoftmaxMask kind;
  int64_t causal_rows;  // Rows of a causal matrix, which follow each other; 0 without.
  int64_t cols;

  // How many of the first columns of a row count: all, or those up to the diagonal that ends in the last corner.
  WARPWRIGHT_HOST_DEVICE int64_t visible(int64_t row) const {
    if (causal_rows == 0) return cols;
    // Of 32 bits: a second division of 64 would cost a CUDA kernel a stack frame. The bindings see to it that they fit.
    const int64_t place = static_cast<uint32_t>(row) % static_cast<uint32_t>(causal_rows);
    const int64_t count = place + 1 + cols - causal_rows;
    return count < 0 ? 0 : count;
  }
};

// output = softmax(scale * input) along the columns, or its logarithm.
struct SoftmaxParams {
  Rows input;   // (rows, cols)
  Rows output;  // (rows, cols), to be written
  SoftmaxBounds bounds;
  int64_t rows, cols;
  double scale;
  bool log;
  DType dtype;
};

// grad_input = scale * output * (grad - sum(grad * output)), or scale * (grad - exp(output) * sum(grad)), and zero
// where the bounds leave nothing.
struct SoftmaxBackwardParams {
  Rows grad_output, output;  // (rows, cols)
  Rows grad_input;           // (rows, cols), to be written
  SoftmaxBounds bounds;
  int64_t rows, cols;
  double scale;
  bool log;
  DType dtype;
};

// Whether the rows of a tensor are columns of matrices that lie row by row in memory, `inner` of them each, as where
// softmax runs along another dimension than the last: then neighbours in memory belong to different rows.
inline int64_t panel_columns(const Rows& rows) {
  const int64_t inner = rows.size[rows.ndim - 1];
  return rows.col_stride != 1 && rows.stride[rows.ndim - 1] == 1 && inner > 1 ? inner : 0;
}

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(softmax, SoftmaxParams)
WARPWRIGHT_DECLARE_LAUNCHER(softmax_backward, SoftmaxBackwardParams)
