// Params and launchers of the losses of single elements.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// kBinaryCrossEntropy: w ((1 - t) x + (1 + (v - 1) t) log(1 + exp(-x))), of logits x, with w the weight and v the
// positive weight. kKlDiv: t log(t) - t x, of log-probabilities x; kKlDivLog: exp(t) (t - x).
enum class PointwiseLoss : int32_t { kBinaryCrossEntropy, kKlDiv, kKlDivLog };

// Rows are cut into pieces of so many columns, numbered row by row; each has a sum of its own.
inline constexpr int64_t kLossPiece = 2048;
WARPWRIGHT_HOST_DEVICE int64_t loss_pieces(int64_t cols) { return (cols + kLossPiece - 1) / kLossPiece; }

struct PointwiseLossParams {
  PointwiseLoss kind;
  Rows input, target;       // (rows, cols) of dtype
  Rows weight, pos_weight;  // The same, any of their strides 0; data is null where there is none.
  void* output;             // (rows, cols) of output_dtype, or null
  void* sums;               // (rows, loss_pieces(cols)) float, double for float64, or null
  int64_t rows, cols;
  DType dtype, output_dtype;
};

struct PointwiseLossBackwardParams {
  PointwiseLoss kind;
  Rows grad_loss;  // (rows, cols) of grad_loss_dtype; all strides are 0 where the loss was reduced
  Rows input, target, weight, pos_weight;
  void *grad_input, *grad_target;  // (rows, cols) of dtype, or null
  int64_t rows, cols;
  double factor;  // of every gradient: one over what a mean was divided by
  DType dtype, grad_loss_dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(pointwise_loss, PointwiseLossParams)
WARPWRIGHT_DECLARE_LAUNCHER(pointwise_loss_backward, PointwiseLossBackwardParams)
