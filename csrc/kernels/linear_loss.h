// Params and launchers of the losses behind a linear layer, beside those of the matmul and the loss family.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// output = scale * input.
struct ScaleParams {
  const void* input;  // (count)
  const void* scale;  // one element of scale_dtype
  void* output;       // (count)
  int64_t count;
  DType dtype, scale_dtype;
};

// sums += addend, in float, double for float64.
struct AccumulateParams {
  void* sums;          // (count)
  const void* addend;  // (count)
  int64_t count;
  DType dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(scale, ScaleParams)
WARPWRIGHT_DECLARE_LAUNCHER(accumulate, AccumulateParams)
