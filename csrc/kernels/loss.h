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

struct CrossEntropyParams {
  Rows input;              // (rows, cols); cols are the classes
  Rows target;             // (rows) int64
  void* row_loss;          // (rows) of row_loss_dtype: the result itself where nothing is reduced
  void* lse;               // (rows) float, double for float64
  void* partial_loss;      // (loss_partials(rows)) float, double for float64; null for kNone
  int64_t* partial_valid;  // (loss_partials(rows)), null for kNone
  void* loss;              // one element of loss_dtype, null for kNone
  int64_t* valid;          // one element, null for kNone
  int64_t rows, cols, ignore_index;
  double label_smoothing;
  Reduction reduction;
  DType dtype, row_loss_dtype, loss_dtype;
};

struct CrossEntropyBackwardParams {
  Rows grad_loss;        // (rows) of grad_loss_dtype; stride 0 where the loss was reduced
  Rows input;            // (rows, cols)
  Rows target;           // (rows) int64
  Rows grad_input;       // (rows, cols)
  const void* lse;       // (rows) float, double for float64
  const int64_t* valid;  // one element, null unless the loss was averaged
  int64_t rows, cols, ignore_index;
  double label_smoothing;
  DType dtype, grad_loss_dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(cross_entropy, CrossEntropyParams)
WARPWRIGHT_DECLARE_LAUNCHER(cross_entropy_backward, CrossEntropyBackwardParams)
