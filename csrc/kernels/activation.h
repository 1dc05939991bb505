// Params and launchers of the activation family.

#pragma once

#include "kernels/common.h"

namespace warpwright {

struct SwigluParams {
  Rows gate, up;  // (rows, cols)
  void* output;   // (rows, cols) contiguous
  int64_t rows, cols;
  DType dtype;
};

struct SwigluBackwardParams {
  Rows grad_output, gate, up;  // (rows, cols)
  void* grad_gate;             // (rows, cols) contiguous
  void* grad_up;               // (rows, cols) contiguous
  int64_t rows, cols;
  DType dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(swiglu, SwigluParams)
WARPWRIGHT_DECLARE_LAUNCHER(swiglu_backward, SwigluBackwardParams)
