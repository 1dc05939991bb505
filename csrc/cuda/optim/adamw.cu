// AdamW (Loshchilov and Hutter, 2019) over many tensors in one launch: a block takes one chunk of one tensor. The
// table of tensors is a kernel argument, so a step of a model with hundreds of small parameters costs a few launches.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "kernels/optim.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// What differs from tensor to tensor and from step to step.
struct StepFactors {
  float step_size, correction;
};

// P: the parameter's and gradient's storage type; S: that of the two averages.
// machine code: plain
template <class P, class S>
__global__ void __launch_bounds__(kThreads) adamw_kernel(const AdamwParams p) {
  if (p.found_inf != nullptr && *p.found_inf != 0.0f) return;
  const int chunk = static_cast<int>(blockIdx.x);
  const int index = p.tensor_of(chunk);
  const AdamwTensor& t = p.tensors[index];
  const int64_t first = static_cast<int64_t>(chunk - p.first_chunk[index]) * kAdamwChunk;
  const int64_t last = t.numel - first < kAdamwChunk ? t.numel : first + kAdamwChunk;
  P* param = static_cast<P*>(t.param);
  const P* grad = static_cast<const P*>(t.grad);
  S* exp_avg = static_cast<S*>(t.exp_avg);
  S* exp_avg_sq = static_cast<S*>(t.exp_avg_sq);

  __shared__ StepFactors factors;
  if (threadIdx.x == 0) {
    // In double, and so by one thread: 1 - beta^step loses most of its digits in float.
    const double step = *t.step;
    factors.step_size = static_cast<float>(p.lr / (1.0 - pow(p.beta1, step)));
    factors.correction = static_cast<float>(sqrt(1.0 - pow(p.beta2, step)));
  }
  __syncthreads();
  const float step_size = factors.step_size, correction = factors.correction;
  const float decay = static_cast<float>(1.0 - p.lr * p.weight_decay), eps = static_cast<float>(p.eps);
  const float beta2 = static_cast<float>(p.beta2);
  const float rest1 = static_cast<float>(1.0 - p.beta1), rest2 = static_cast<float>(1.0 - p.beta2);
  const float scale = (p.grad_scale == nullptr ? 1.0f : *p.grad_scale) * (p.maximize ? -1.0f : 1.0f);

  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    const float g = to_float(grad[i]) / scale;
    float m = to_float(exp_avg[i]), v = to_float(exp_avg_sq[i]);
    float x = t.master == nullptr ? to_float(param[i]) : t.master[i];
    m += (g - m) * rest1;
    v = v * beta2 + g * g * rest2;
    x = x * decay - step_size * m / (sqrtf(v) / correction + eps);
    exp_avg[i] = from_float<S>(m);
    exp_avg_sq[i] = from_float<S>(v);
    if (t.master != nullptr) t.master[i] = x;
    param[i] = from_float<P>(x);
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void adamw(const AdamwParams& params, Stream stream) {
  const auto chunks = static_cast<unsigned>(params.first_chunk[params.count]);
  const LaunchConfig config{dim3(chunks), dim3(kThreads), stream};
  visit_float(params.dtype, [&](auto tag) {
    using P = decltype(tag);
    const auto kernel = params.state_dtype == params.dtype ? adamw_kernel<P, P> : adamw_kernel<P, float>;
    launch("adamw", kernel, config, params);
  });
}

}  // namespace warpwright::cuda
