// LAMB (You et al., 2020): Adam's direction with decay, as long as the parameter tensor itself. The moments and both
// norms are made in one pass, a ratio for each tensor out of the blocks' sums, and the step in a second pass, which
// makes the direction again: that reads the moments once more, and needs no memory of the parameters' size. 8-bit
// moments are only read by the first pass: the step is made of moments before they are rounded, so the second needs the
// old codes, and the gradient again.

#include "cuda/optim/moments.cuh"
#include "cuda/optim/step.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

struct LambRule {
  AdamMoments moments;
  float correction1, weight_decay;

  __device__ void prepare(const OptimParams& p, const StepScalars& s) {
    correction1 = static_cast<float>(moments.prepare(p, s.step));
    weight_decay = static_cast<float>(p.weight_decay);
  }
  // A lane's moments after this step; those of lanes past the end are 0.
  template <class P, class S>
  __device__ __forceinline__ void load_updated(const StepScalars& s, const OptimTensor& t, int64_t first, int count,
                                               bool whole, float (&m)[kLaneElements], float (&v)[kLaneElements]) const {
    float g[kLaneElements];
    load_gradient<P>(s, t, first, count, whole, g);
    load_moment<S>(t, 0, first, count, whole, m);
    load_moment<S>(t, 1, first, count, whole, v);
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) moments.update(g[i], m[i], v[i]);
  }
  __device__ __forceinline__ float direction(float x, float m, float v) const {
    return m * correction1 / moments.denominator(v) + x * weight_decay;
  }
};

// P: the parameter's and gradient's storage type; S: that of the moments, float or codes.
// machine code: Code8>: LDG.128; else: 16-byte
template <class P, class S>
__global__ void __launch_bounds__(kStepThreads) lamb_moments_kernel(const OptimParams p) {
  if (p.found_inf != nullptr && *p.found_inf != 0.0f) return;
  const int index = p.tensor_of(static_cast<int>(blockIdx.x));
  const OptimTensor& t = p.tensors[index];
  __shared__ LambRule shared_rule;
  const StepScalars scalars(p, t);
  if (threadIdx.x == 0) shared_rule.prepare(p, scalars);
  __syncthreads();
  const LambRule rule = shared_rule;
  float squares[2] = {0.0f, 0.0f};
  for_each_lane(p, t, index, [&](int64_t first, int count, bool whole) {
    float x[kLaneElements], m[kLaneElements], v[kLaneElements];
    load_value<P>(t, first, count, whole, x);
    rule.load_updated<P, S>(scalars, t, first, count, whole, m, v);
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) {
      const float u = rule.direction(x[i], m[i], v[i]);
      if (i < count) {
        squares[0] += x[i] * x[i];
        squares[1] += u * u;
      }
    }
    if (!kIsCode<S>) {
      store_moment<S>(t, 0, first, count, whole, m);
      store_moment<S>(t, 1, first, count, whole, v);
    }
  });
  for (int k = 0; k < 2; ++k) {
    const float sum = block_reduce<Sum, kStepThreads>(squares[k]);
    if (threadIdx.x == 0) static_cast<float*>(p.partials)[2 * blockIdx.x + k] = sum;
  }
}

// How long each parameter is against its direction; a block a tensor.
// machine code: plain
__global__ void __launch_bounds__(kStepThreads) lamb_trust_kernel(const OptimParams p) {
  const int index = static_cast<int>(blockIdx.x);
  const float* partials = static_cast<const float*>(p.partials);
  float norms[2];
  for (int k = 0; k < 2; ++k) {
    float sum = 0.0f;
    for (int chunk = p.first_chunk[index] + static_cast<int>(threadIdx.x); chunk < p.first_chunk[index + 1];
         chunk += kStepThreads) {
      sum += partials[2 * static_cast<int64_t>(chunk) + k];
    }
    norms[k] = sqrtf(block_reduce<Sum, kStepThreads>(sum));
  }
  if (threadIdx.x == 0) {
    static_cast<float*>(p.trust)[index] = norms[0] > 0.0f && norms[1] > 0.0f ? norms[0] / norms[1] : 1.0f;
  }
}

// machine code: 16-byte
template <class P, class S>
__global__ void __launch_bounds__(kStepThreads) lamb_step_kernel(const OptimParams p) {
  if (p.found_inf != nullptr && *p.found_inf != 0.0f) return;
  const int index = p.tensor_of(static_cast<int>(blockIdx.x));
  const OptimTensor& t = p.tensors[index];
  __shared__ LambRule shared_rule;
  const StepScalars scalars(p, t);
  if (threadIdx.x == 0) shared_rule.prepare(p, scalars);
  __syncthreads();
  const LambRule rule = shared_rule;
  const float step_size = static_cast<float>(scalars.lr) * static_cast<const float*>(p.trust)[index];
  for_each_lane(p, t, index, [&](int64_t first, int count, bool whole) {
    float x[kLaneElements], m[kLaneElements], v[kLaneElements];
    load_value<P>(t, first, count, whole, x);
    if (kIsCode<S>) {
      rule.load_updated<P, S>(scalars, t, first, count, whole, m, v);
      store_moment<S>(t, 0, first, count, whole, m);
      store_moment<S>(t, 1, first, count, whole, v);
    } else {
      load_moment<S>(t, 0, first, count, whole, m);
      load_moment<S>(t, 1, first, count, whole, v);
    }
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) x[i] -= step_size * rule.direction(x[i], m[i], v[i]);
    store_value<P>(p, t, first, count, whole, x);
  });
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void lamb(const OptimParams& params, Stream stream) {
  const auto chunks = static_cast<unsigned>(params.first_chunk[params.count]);
  const LaunchConfig config{dim3(chunks), dim3(kStepThreads), stream};
  visit_float(params.dtype, [&](auto tag) {
    using P = decltype(tag);
    const bool coded = params.state_dtype == DType::kUInt8;
    launch("lamb_moments", coded ? lamb_moments_kernel<P, Code8> : lamb_moments_kernel<P, float>, config, params);
    const auto tensors = static_cast<unsigned>(params.count);
    launch("lamb_trust", lamb_trust_kernel, {dim3(tensors), dim3(kStepThreads), stream}, params);
    launch("lamb_step", coded ? lamb_step_kernel<P, Code8> : lamb_step_kernel<P, float>, config, params);
  });
}

}  // namespace warpwright::cuda
