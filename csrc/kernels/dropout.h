// Params and launcher of the dropout family.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// output = residual + input * factor, where factor is `scale` for elements whose word (kernels/philox.h) is at least
// `threshold` and 0 for the others.
struct DropoutParams {
  Rows input;        // (rows, cols): of the last dimension
  Rows residual;     // (rows, cols), data null without one
  const void* seed;  // One int64, on the device
  void* output;      // (rows, cols) contiguous
  int64_t rows, cols, offset;
  uint32_t threshold;
  double scale;
  DType dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(dropout_add, DropoutParams)
