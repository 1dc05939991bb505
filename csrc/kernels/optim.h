// Params and launchers of the optim family.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// Elements that one block of a GPU, or one task of a CPU thread, updates.
inline constexpr int64_t kAdamwChunk = 16384;
// Tensors of one launch: their table travels as a kernel argument, of which CUDA passes 4 KB.
inline constexpr int kMaxAdamwTensors = 48;

// One parameter and what belongs to it, each in one piece of memory, in the same order of elements.
struct AdamwTensor {
  void* param;        // dtype
  const void* grad;   // dtype
  void* exp_avg;      // state_dtype
  void* exp_avg_sq;   // state_dtype
  float* master;      // the parameter in float32, or null
  const float* step;  // one element: the number of this step, from 1
  int64_t numel;      // more than 0
};

struct AdamwParams {
  AdamwTensor tensors[kMaxAdamwTensors];
  int32_t first_chunk[kMaxAdamwTensors + 1];  // chunks [first_chunk[t], first_chunk[t + 1]) are of tensor t
  int32_t count;
  bool maximize;
  double lr, beta1, beta2, eps, weight_decay;
  const float* grad_scale;  // one element that gradients are divided by, or null
  const float* found_inf;   // one element: nothing changes where it is not 0; or null
  DType dtype, state_dtype;

  // Which tensor chunk `chunk` belongs to.
  WARPWRIGHT_HOST_DEVICE int tensor_of(int32_t chunk) const {
    int t = 0;
    while (chunk >= first_chunk[t + 1]) ++t;
    return t;
  }
};
static_assert(sizeof(AdamwParams) <= 4096, "CUDA passes 4 KB of kernel arguments");

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(adamw, AdamwParams)
