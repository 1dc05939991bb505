// The two moments that Adam and LAMB keep.

#pragma once

#include "cuda/runtime.h"
#include "kernels/optim.h"

namespace warpwright::cuda {

struct AdamMoments {
  float correction2;  // The root of the second moment's, to be divided by.
  float beta2, rest1, rest2, eps;

  // Returns the first moment's correction, to be multiplied by.
  __device__ double prepare(const OptimParams& p, double step) {
    // In double: 1 - beta^step loses most of its digits in float.
    correction2 = static_cast<float>(sqrt(1.0 - pow(p.beta2, step)));
    beta2 = static_cast<float>(p.beta2);
    rest1 = static_cast<float>(1.0 - p.beta1);
    rest2 = static_cast<float>(1.0 - p.beta2);
    eps = static_cast<float>(p.eps);
    return 1.0 / (1.0 - pow(p.beta1, step));
  }
  __device__ __forceinline__ void update(float g, float& m, float& v) const {
    m += (g - m) * rest1;
    v = v * beta2 + g * g * rest2;
  }
  __device__ __forceinline__ float denominator(float v) const { return sqrtf(v) / correction2 + eps; }
};

}  // namespace warpwright::cuda
