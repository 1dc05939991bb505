// Stochastic gradient descent with torch.optim.SGD's momentum: the first step's buffer is the gradient.

#include "cuda/optim/step.cuh"

namespace warpwright::cuda {
namespace {

struct SgdRule {
  static constexpr int kMoments = 1;
  static constexpr bool kMaximum = false;
  float lr, momentum, rest, l2;
  int first_step, nesterov;  // Flags; all of a rule is copied, and padding would be copied unwritten.

  __device__ void prepare(const OptimParams& p, const StepScalars& s) {
    lr = static_cast<float>(s.lr);
    momentum = static_cast<float>(p.momentum);
    rest = static_cast<float>(1.0 - p.dampening);
    l2 = static_cast<float>(p.weight_decay);
    first_step = s.step <= 1.0;
    nesterov = p.nesterov;
  }
  __device__ __forceinline__ void update(float& x, float g, float& buffer, float&, float&) const {
    if (l2 != 0.0f) g += x * l2;
    if (momentum != 0.0f) {
      buffer = first_step ? g : buffer * momentum + g * rest;
      g = nesterov ? g + buffer * momentum : buffer;
    }
    x -= g * lr;
  }
};

}  // namespace

void sgd(const OptimParams& params, Stream stream) { launch_step<SgdRule>("sgd", params, stream); }

}  // namespace warpwright::cuda
