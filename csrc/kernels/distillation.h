// Params and launcher of the losses that teach one model by another.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// With p = softmax(teacher / temperature) and q = softmax(student / temperature) of each row, row_loss is the sum of
// p (log(p) - log(q)), and grad = grad_loss factor (q - p) / temperature is its gradient over the student's logits.
//
// Kernels sum p (log(p) - log(q)) + (q - p): the second part sums to nothing, and cancels what the rounding of a row's
// normaliser, which all of its classes share, does to the first. Where both are alike that is all there is to see.
struct SoftmaxKlDivParams {
  Rows student, teacher;  // (rows, cols) of dtype
  Rows grad;              // (rows, cols) of dtype; may be the student. Data is null where it is not wanted.
  Rows grad_loss;         // (rows) of grad_loss_dtype; stride 0 where the loss was reduced. Data is null for ones.
  void* row_loss;         // (rows) of row_loss_dtype, or null
  int64_t rows, cols;
  double temperature, factor;
  DType dtype, row_loss_dtype, grad_loss_dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(softmax_kl_div, SoftmaxKlDivParams)
