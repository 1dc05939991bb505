// Adam (Kingma and Ba, 2015), and AdamW (Loshchilov and Hutter, 2019), whose decay does not pass through the moments;
// either as AMSGrad (Reddi et al., 2018), which divides by the largest second moment so far.

#include "cuda/optim/moments.cuh"
#include "cuda/optim/step.cuh"

namespace warpwright::cuda {
namespace {

template <bool kAmsgrad>
struct AdamRule {
  static constexpr int kMoments = 2;
  static constexpr bool kMaximum = kAmsgrad;
  AdamMoments moments;
  float step_size, decay, l2;

  __device__ void prepare(const OptimParams& p, const StepScalars& s) {
    step_size = static_cast<float>(s.lr * moments.prepare(p, s.step));
    decay = p.decoupled ? static_cast<float>(1.0 - s.lr * p.weight_decay) : 1.0f;
    l2 = p.decoupled ? 0.0f : static_cast<float>(p.weight_decay);
  }
  __device__ __forceinline__ void update(float& x, float g, float& m, float& v, float& maximum) const {
    if (l2 != 0.0f) g += x * l2;
    moments.update(g, m, v);
    if (kAmsgrad) maximum = Larger::combine(maximum, v);
    x = x * decay - step_size * m / moments.denominator(kAmsgrad ? maximum : v);
  }
};

}  // namespace

void adam(const OptimParams& params, Stream stream) {
  if (params.amsgrad) return launch_step<AdamRule<true>>("amsgrad", params, stream);
  launch_step<AdamRule<false>>("adam", params, stream);
}

}  // namespace warpwright::cuda
