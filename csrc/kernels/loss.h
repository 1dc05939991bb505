// Params and launchers of the loss family.

#pragma once

#include "kernels/common.h"

namespace warpwright {

enum class Reduction : int32_t { kNone, kMean, kSum };

// The losses of rows are summed in two stages: block b sums its own rows into partial b, then the partials are added in
// order. The split depends on the number of rows alone, so the sum is bitwise the same every time.
inline constexpr int64_t kMaxLossPartials = 128;
inline constexpr int64_t kRowsPerLossPartial = 1024;
inline constexpr int64_t loss_partials(int64_t rows) {
  const int64_t wanted = (rows + kRowsPerLossPartial - 1) / kRowsPerLossPartial;
  return wanted < 1 ? 1 : (wanted < kMaxLossPartials ? wanted : kMaxLossPartials);
}

// loss = the sum of row_loss, or for kMean that divided by `total`: the weights of the targets of the rows that count.
struct LossSumsParams {
  const void* row_loss;  // (rows)
  Rows target;           // (rows) int64; data is null where every row counts alike
  const void* weight;    // (classes), or null: every class counts once
  void* partial_loss;    // (loss_partials(rows))
  void* partial_total;   // (loss_partials(rows))
  void* loss;            // one element of loss_dtype
  void* total;           // one element
  int64_t rows, classes, ignore_index;
  Reduction reduction;
  bool total_only;          // There are no losses yet.
  double factor;            // of the sum
  DType dtype, loss_dtype;  // What has no dtype of its own has `dtype`: float32 or float64.
};

// The target of a row is a class, or how probable each class is. With w the class weights and s the smoothing, class c
// has the mass a[c] = w[c] (s / cols + (1 - s) target[c]), where a class as a target has the probability 1. The loss is
// the sum of a[c] (lse - y[c]) + z_loss lse^2, with y the logits, or softcap tanh(input / softcap), and lse the
// logarithm of the sum of their exponentials.
struct CrossEntropySettings {
  int64_t rows, cols, ignore_index;
  double label_smoothing, z_loss, softcap;  // Without a cap softcap is 0.
  bool probabilities;                       // What the target is.
  DType dtype, target_dtype;                // target_dtype, where the target holds probabilities: dtype or its sums'.
};

struct CrossEntropyParams {
  CrossEntropySettings with;
  Rows input;          // (rows, cols); cols are the classes
  Rows target;         // (rows) int64, or (rows, cols)
  const void* weight;  // (cols) float, double for float64, or null
  void* row_loss;      // (rows) of row_loss_dtype
  void* max;           // (rows) float, double for float64: the largest y
  void* log_sum;       // (rows) the same: the logarithm of the sum of exp(y - max), so that lse = max + log_sum
  void* mass;          // (rows) the same: the sum of a; null where it is 1
  DType row_loss_dtype;
};

struct CrossEntropyBackwardParams {
  CrossEntropySettings with;
  Rows grad_loss;       // (rows) of grad_loss_dtype; stride 0 where the loss was reduced
  Rows input;           // (rows, cols)
  Rows target;          // (rows) int64, or (rows, cols)
  Rows grad_input;      // (rows, cols); may be the input. Data is null where it is not wanted.
  Rows grad_target;     // (rows, cols) of target_dtype; data is null where it is not wanted
  const void* weight;   // (cols) float, double for float64, or null
  const void* max;      // (rows)
  const void* log_sum;  // (rows)
  const void* mass;     // (rows), or null
  const void* total;    // one element, what the mean was divided by; null unless the loss was averaged
  DType grad_loss_dtype;
};

// loss = -weight[target] * input[target], of log-probabilities.
struct NllLossParams {
  Rows input;          // (rows, cols); cols are the classes
  Rows target;         // (rows) int64
  const void* weight;  // (cols) float, double for float64, or null
  void* row_loss;      // (rows) of row_loss_dtype
  int64_t rows, cols, ignore_index;
  DType dtype, row_loss_dtype;
};

struct NllLossBackwardParams {
  Rows grad_loss;      // (rows) of grad_loss_dtype; stride 0 where the loss was reduced
  Rows target;         // (rows) int64
  Rows grad_input;     // (rows, cols), zeros
  const void* weight;  // (cols) float, double for float64, or null
  const void* total;   // one element, what the mean was divided by; null unless the loss was averaged
  int64_t rows, cols, ignore_index;
  DType dtype, grad_loss_dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(loss_sums, LossSumsParams)
WARPWRIGHT_DECLARE_LAUNCHER(cross_entropy, CrossEntropyParams)
WARPWRIGHT_DECLARE_LAUNCHER(cross_entropy_backward, CrossEntropyBackwardParams)
WARPWRIGHT_DECLARE_LAUNCHER(nll_loss, NllLossParams)
WARPWRIGHT_DECLARE_LAUNCHER(nll_loss_backward, NllLossBackwardParams)
