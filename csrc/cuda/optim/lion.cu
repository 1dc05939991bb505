// Lion (Chen et al., 2023): a step of the same length for every element, in the direction of a momentum's sign.

#include "cuda/optim/step.cuh"

namespace warpwright::cuda {
namespace {

struct LionRule {
  static constexpr int kMoments = 1;
  static constexpr bool kMaximum = false;
  float lr, decay, beta1, rest1, beta2, rest2;

  __device__ void prepare(const OptimParams& p, const StepScalars& s) {
    lr = static_cast<float>(s.lr);
    decay = static_cast<float>(1.0 - s.lr * p.weight_decay);
    beta1 = static_cast<float>(p.beta1);
    rest1 = static_cast<float>(1.0 - p.beta1);
    beta2 = static_cast<float>(p.beta2);
    rest2 = static_cast<float>(1.0 - p.beta2);
  }
  __device__ __forceinline__ void update(float& x, float g, float& m, float&, float&) const {
    const float u = m * beta1 + g * rest1;
    const float sign = u > 0.0f ? 1.0f : (u < 0.0f ? -1.0f : u);  // Zero and NaN are their own signs.
    x = x * decay - lr * sign;
    m = m * beta2 + g * rest2;
  }
};

}  // namespace

void lion(const OptimParams& params, Stream stream) { launch_step<LionRule>("lion", params, stream); }

}  // namespace warpwright::cuda
