// Params and launchers of the rotary family.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// Rotates pairs of elements of each head by the angle of their position: (a, b) -> (a cos - b sin, b cos + a sin).
// Pair i is (i, i + rotary_dim / 2), or (2 i, 2 i + 1) when interleaved; elements past rotary_dim are copied.
struct RotaryParams {
  const void* input;  // (batch, sequence, heads, head_dim), any strides
  int64_t input_stride[4];
  void* output;                    // the same, contiguous
  const void* cos;                 // (batch or 1, sequence, rotary_dim / 2), unit last stride
  const void* sin;                 // the strides of cos
  int64_t table_batch, table_row;  // strides of cos and sin
  int64_t batch, sequence, heads, head_dim, rotary_dim;
  bool interleaved;
  bool inverse;       // rotate back: the backward pass
  DType dtype;        // of input, output
  DType table_dtype;  // of cos, sin: float32, or dtype
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(rotary, RotaryParams)
