// Params and launchers of the optim family.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// Elements that one block of a GPU, or one task of a CPU thread, updates.
inline constexpr int64_t kOptimChunk = 16384;
// Tensors of one launch: their table travels as a kernel argument, of which CUDA passes 4 KB.
inline constexpr int kMaxOptimTensors = 42;

// 8-bit moments. `kCodeBlock` elements share a scale, their largest magnitude. A first moment is sign * (c / 127)^2 *
// scale with c in [0, 127], stored as 128 + sign * c; a second one is (c / 255)^4 * scale with c in [0, 255]. The
// powers make steps near zero fine: a step of the optimizer divides by the second moment's root, which must not round
// to zero, so a positive one has c of at least 1.
inline constexpr int64_t kCodeBlock = 256;
inline constexpr float kSignedCodes = 127.0f, kUnsignedCodes = 255.0f, kZeroCode = 128.0f;

// One parameter and what belongs to it, each in one piece of memory, in the same order of elements: row by row where
// there are codes or random bits, whose meaning hangs on an element's place.
struct OptimTensor {
  void* param;        // dtype
  const void* grad;   // dtype
  void* moments[2];   // state_dtype; null where the rule has none
  void* maximum;      // of the second moment so far, with `amsgrad`: state_dtype, or float32 beside codes
  float* scales[2];   // of 8-bit moments, one for each kCodeBlock elements; else null
  float* master;      // the parameter in float32, or null
  const float* step;  // one element: the number of this step, from 1
  int64_t numel;      // more than 0
  int32_t index;      // its place in the call's list
};

struct OptimParams {
  OptimTensor tensors[kMaxOptimTensors];
  int32_t first_chunk[kMaxOptimTensors + 1];  // chunks [first_chunk[t], first_chunk[t + 1]) are of tensor t
  int32_t count;
  DType dtype, state_dtype;
  bool maximize, decoupled, amsgrad, nesterov, stochastic;
  double lr, beta1, beta2, eps, weight_decay, momentum, dampening;
  const float* lr_tensor;        // one element that takes lr's place, or null
  const float* grad_scale;       // one element that gradients are divided by, or null
  const float* grad_multiplier;  // one element that they are then multiplied by, or null
  const float* found_inf;        // one element: nothing changes where it is not 0; or null
  int64_t seed;                  // of the random bits of stochastic rounding
  void* partials;                // lamb: two sums of squares a chunk, in the type that is computed in
  void* trust;                   // lamb: one ratio a tensor of the table

  // Which tensor chunk `chunk` belongs to.
  WARPWRIGHT_HOST_DEVICE int tensor_of(int32_t chunk) const {
    int t = 0;
    while (chunk >= first_chunk[t + 1]) ++t;
    return t;
  }
};
static_assert(sizeof(OptimParams) <= 4096, "CUDA passes 4 KB of kernel arguments");

}  // namespace warpwright

// Adam, and AdamW where `decoupled`; AMSGrad where `amsgrad`.
WARPWRIGHT_DECLARE_LAUNCHER(adam, OptimParams)
WARPWRIGHT_DECLARE_LAUNCHER(sgd, OptimParams)
WARPWRIGHT_DECLARE_LAUNCHER(lion, OptimParams)
WARPWRIGHT_DECLARE_LAUNCHER(lamb, OptimParams)
