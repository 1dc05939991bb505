// The sum of exponentials of a row that is read once, rescaled whenever its maximum moves (Milakov and Gimelshein,
// "Online normalizer calculation for softmax", 2018).

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda {

// max, and sum = sum of exp((x - max) scale), of the elements seen so far; one positive scale for all calls.
struct OnlineSum {
  float max = -INFINITY, sum = 0.0f;

  template <int kCount>
  __device__ __forceinline__ void add(const float (&x)[kCount], float scale = 1.0f) {
    float highest = max;
#pragma unroll
    for (int i = 0; i < kCount; ++i) highest = fmaxf(highest, x[i]);
    if (highest > max) {
      sum = rescaled(highest, scale);
      max = highest;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (x[i] != -INFINITY)
        sum += expf((x[i] - max) * scale);  // NaN comes here, and an infinity's difference with itself.
    }
  }
  // The sum with respect to a maximum over more elements.
  __device__ __forceinline__ float rescaled(float new_max, float scale = 1.0f) const {
    return max == -INFINITY ? sum : sum * expf((max - new_max) * scale);
  }
};

}  // namespace warpwright::cuda
