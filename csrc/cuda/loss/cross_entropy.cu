// Cross entropy over classes: one block a row. The maximum and the sum of exponentials come from one read of the row;
// the backward pass reads the row again and needs only its log-sum-exp. Logits are never written. A target that spreads
// over the classes is weighed with them in a second walk, which finds the row in the L2 cache.
//
// One kernel for both gradients in one pass would have to write a gradient before its scale is known, and scaling it
// later reads and writes it once more: four passes over the row instead of three.
//
// A target that is neither a class nor ignore_index gives NaN, in the loss and in the gradient of its row, and nothing
// is read through it: the host cannot look at the targets without waiting for the GPU.

#include <type_traits>

#include "cuda/loss/loss.cuh"
#include "cuda/loss/online_sum.cuh"
#include "cuda/tile/reduction.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// Which of a call's rows can be moved by 16-byte instructions.
struct Packs {
  bool input, target, grad_input, grad_target;
};
struct ForwardParams : CrossEntropyParams {
  Packs packs;
};
struct BackwardParams : CrossEntropyBackwardParams {
  Packs packs;
};

__device__ __forceinline__ float capped(float x, float cap) { return cap > 0.0f ? cap * tanhf(x / cap) : x; }

// The masses of the classes, see kernels/loss.h. P is the type of the target's probabilities, or void.
template <class P>
struct Masses {
  const float* weight;
  const P* target;
  int64_t step;
  bool packs;
  float spread, rest;

  __device__ Masses(const CrossEntropySettings& with, const void* weights, const Rows& rows, int64_t row, bool packs)
      : weight(static_cast<const float*>(weights)), target(nullptr), step(rows.col_stride), packs(packs) {
    if constexpr (!std::is_void_v<P>) target = static_cast<const P*>(rows.data) + rows.offset(row);
    spread = static_cast<float>(with.label_smoothing) / static_cast<float>(with.cols);
    rest = 1.0f - static_cast<float>(with.label_smoothing);
  }
  __device__ __forceinline__ float weight_at(int64_t col) const { return weight == nullptr ? 1.0f : weight[col]; }
  // Those of the `left` classes from col on, without what a class as a target adds; zero past them.
  template <int kCount>
  __device__ __forceinline__ void load(int64_t col, int64_t left, float (&a)[kCount]) const {
    if constexpr (std::is_void_v<P>) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) a[i] = i < left ? spread * weight_at(col + i) : 0.0f;
    } else {
      Piece<P, kCount> probabilities;
      probabilities.load(target + col * step, step, packs, left);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        a[i] = i < left ? (rest * probabilities.values[i] + spread) * weight_at(col + i) : 0.0f;
      }
    }
  }
  __device__ __forceinline__ bool spreads() const { return !std::is_void_v<P> || spread > 0.0f; }
};

// The loss of class t is log_sum + (max - y[t]), which keeps its digits where max is large.
// machine code: SHFL, MUFU.EX2, LDG.128
template <class T, class P>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(const ForwardParams p) {
  constexpr int kCount = kPackSize<T>, kStep = kThreads * kCount;
  const int64_t cols = p.with.cols, step = p.input.col_stride;
  const float cap = static_cast<float>(p.with.softcap);
  float *maxima = static_cast<float*>(p.max), *log_sums = static_cast<float*>(p.log_sum);
  float* masses_out = static_cast<float*>(p.mass);
  for (int64_t row = blockIdx.x; row < p.with.rows; row += gridDim.x) {
    int64_t target = 0;
    if constexpr (std::is_void_v<P>) {
      target = target_of(p.target, row);
      if (target == p.with.ignore_index) {  // The same for every thread of the block.
        if (threadIdx.x == 0) {
          maxima[row] = log_sums[row] = 0.0f;
          if (masses_out != nullptr) masses_out[row] = 0.0f;
          store_as(p.row_loss_dtype, p.row_loss, row, 0.0f);
        }
        continue;
      }
    }
    const T* input = static_cast<const T*>(p.input.data) + p.input.offset(row);
    const Masses<P> masses(p.with, p.weight, p.target, row, p.packs.target);
    OnlineSum online;
    Piece<T, kCount> x;
    for (int64_t col = threadIdx.x * kCount; col < cols; col += kStep) {
      x.load(input + col * step, step, p.packs.input, cols - col, -INFINITY);
      if (cap > 0.0f) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) x.values[i] = col + i < cols ? capped(x.values[i], cap) : -INFINITY;
      }
      online.add(x.values);
    }
    const float max = block_reduce<Max, kThreads>(online.max);
    const float log_sum = logf(block_reduce<Sum, kThreads>(online.rescaled(max)));
    float mass = 0.0f, gaps = 0.0f;
    if (masses.spreads()) {
      for (int64_t col = threadIdx.x * kCount; col < cols; col += kStep) {
        float a[kCount];
        masses.load(col, cols - col, a);
        x.load(input + col * step, step, p.packs.input, cols - col);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          mass += a[i];
          if (col + i < cols) gaps += a[i] * (max - capped(x.values[i], cap));
        }
      }
      mass = block_reduce<Sum, kThreads>(mass);
      gaps = block_reduce<Sum, kThreads>(gaps);
    }
    if (threadIdx.x != 0) continue;
    float loss = mass * log_sum + gaps;
    if constexpr (std::is_void_v<P>) {
      const bool known = target >= 0 && target < cols;
      const float own = known ? masses.rest * masses.weight_at(target) : NAN;
      mass += own;
      loss += own * (log_sum + (max - (known ? capped(to_float(input[target * step]), cap) : NAN)));
    }
    maxima[row] = max;
    log_sums[row] = log_sum;
    const float lse = max + log_sum;
    if (p.with.z_loss > 0) loss += static_cast<float>(p.with.z_loss) * lse * lse;
    if (masses_out != nullptr) masses_out[row] = mass;
    store_as(p.row_loss_dtype, p.row_loss, row, loss);
  }
}

// grad_input = grad * (softmax(y) * (mass + 2 z_loss lse) - a), times the cap's derivative 1 - (y / softcap)^2;
// grad_target = grad * weight * (1 - label_smoothing) * (lse - y). An element may be written where it was read.
// machine code: MUFU.EX2, 16-byte
template <class T, class P>
__global__ void __launch_bounds__(kThreads) cross_entropy_backward_kernel(const BackwardParams p) {
  constexpr int kCount = kPackSize<T>, kStep = kThreads * kCount;
  const int64_t cols = p.with.cols, step = p.input.col_stride, out_step = p.grad_input.col_stride;
  const float cap = static_cast<float>(p.with.softcap);
  for (int64_t row = blockIdx.x; row < p.with.rows; row += gridDim.x) {
    int64_t target = -1;
    if constexpr (std::is_void_v<P>) target = target_of(p.target, row);
    const bool ignored = std::is_void_v<P> && target == p.with.ignore_index;
    const Masses<P> masses(p.with, p.weight, p.target, row, p.packs.target);
    float scale = load_as(p.grad_loss_dtype, p.grad_loss.data, p.grad_loss.offset(row)), own = 0.0f;
    if (p.total != nullptr) scale /= *static_cast<const float*>(p.total);
    if constexpr (std::is_void_v<P>) {
      const bool known = target >= 0 && target < cols;
      own = known ? masses.rest * masses.weight_at(target) : 0.0f;
      if (!known) scale = NAN;
    }
    const float max = static_cast<const float*>(p.max)[row], log_sum = static_cast<const float*>(p.log_sum)[row];
    const float mass = p.mass == nullptr ? 1.0f : static_cast<const float*>(p.mass)[row];
    const float factor = mass + 2.0f * static_cast<float>(p.with.z_loss) * (max + log_sum);
    const T* input = static_cast<const T*>(p.input.data) + p.input.offset(row);
    T* grad_input = static_cast<T*>(p.grad_input.data) + p.grad_input.offset(row);
    for (int64_t col = threadIdx.x * kCount; col < cols; col += kStep) {
      Piece<T, kCount> x, grad;
      float a[kCount];
      x.load(input + col * step, step, p.packs.input, cols - col);
      masses.load(col, cols - col, a);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float y = capped(x.values[i], cap);
        grad.values[i] = scale * (expf((y - max) - log_sum) * factor - a[i] - (col + i == target ? own : 0.0f));
        if (cap > 0.0f) grad.values[i] *= 1.0f - (y / cap) * (y / cap);
        if (ignored) grad.values[i] = 0.0f;
        x.values[i] = y;
      }
      if (p.grad_input.data != nullptr) {
        grad.store(grad_input + col * out_step, out_step, p.packs.grad_input, cols - col);
      }
      if constexpr (!std::is_void_v<P>) {
        if (p.grad_target.data == nullptr) continue;
        P* grad_target = static_cast<P*>(p.grad_target.data) + p.grad_target.offset(row);
        Piece<P, kCount> of_target;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float weight = col + i < cols ? masses.weight_at(col + i) : 0.0f;
          of_target.values[i] = scale * masses.rest * weight * (log_sum + (max - x.values[i]));
        }
        const int64_t target_step = p.grad_target.col_stride;
        of_target.store(grad_target + col * target_step, target_step, p.packs.grad_target, cols - col);
      }
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

// Calls f with a value of the logits' type and a pointer to that of the probabilities, to void where there are none.
template <class F>
void visit_types(const CrossEntropySettings& with, const F& f) {
  visit_float(with.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (!with.probabilities) return f(tag, static_cast<void*>(nullptr));
    if (with.target_dtype == with.dtype) return f(tag, static_cast<T*>(nullptr));
    f(tag, static_cast<float*>(nullptr));
  });
}

template <class P>
bool fit_packs(const Rows& rows) {
  if constexpr (std::is_void_v<P>) {
    return false;
  } else {
    return rows.data != nullptr && rows_fit_packs<P>(rows);
  }
}

}  // namespace

void cross_entropy(const CrossEntropyParams& params, Stream stream) {
  if (params.with.rows == 0) return;
  visit_types(params.with, [&](auto tag, auto* probabilities) {
    using T = decltype(tag);
    using P = std::remove_pointer_t<decltype(probabilities)>;
    const ForwardParams packed{params, {rows_fit_packs<T>(params.input), fit_packs<P>(params.target), false, false}};
    const LaunchConfig config{grid_of_rows(params.with.rows), dim3(kThreads), stream};
    launch("cross_entropy", cross_entropy_kernel<T, P>, config, packed);
  });
}

void cross_entropy_backward(const CrossEntropyBackwardParams& params, Stream stream) {
  visit_types(params.with, [&](auto tag, auto* probabilities) {
    using T = decltype(tag);
    using P = std::remove_pointer_t<decltype(probabilities)>;
    const Packs packs{rows_fit_packs<T>(params.input), fit_packs<P>(params.target), fit_packs<T>(params.grad_input),
                      fit_packs<P>(params.grad_target)};
    const BackwardParams packed{params, packs};
    const LaunchConfig config{grid_of_rows(params.with.rows), dim3(kThreads), stream};
    launch("cross_entropy_backward", cross_entropy_backward_kernel<T, P>, config, packed);
  });
}

}  // namespace warpwright::cuda
