// Activations, gated (Shazeer, "GLU Variants Improve Transformer", 2020) or not, in one pass with their biases: a gated
// one saves the write and the read of the activated gate. The backward pass recomputes what it needs of the inputs.
// Forward, each thread takes one pack of a row; backward, one pack of a group of rows, so that it can keep the sums of
// its columns for the biases' gradients. Strided or unaligned rows are walked one element a thread.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/partials.cuh"
#include "kernels/activation.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// Where one pack lies: its row, or group of rows, its first column, and how many of its elements the row still has.
struct Place {
  int64_t row, col;
  int count;
};

template <int kCount>
__device__ __forceinline__ Place place_of(int64_t pack, int64_t cols) {
  const int64_t packs_per_row = (cols + kCount - 1) / kCount;
  const int64_t row = pack / packs_per_row, col = (pack - row * packs_per_row) * kCount;
  return {row, col, cols - col < kCount ? static_cast<int>(cols - col) : kCount};
}

template <class T, int kCount>
__device__ __forceinline__ Pack<T, kCount> load_pack(const Rows& rows, int64_t row, int64_t col) {
  const T* p = static_cast<const T*>(rows.data) + rows.offset(row) + col * rows.col_stride;
  return *reinterpret_cast<const Pack<T, kCount>*>(p);
}

template <class T, int kCount>
__device__ __forceinline__ void store_pack(void* output, int64_t at, const Pack<T, kCount>& pack) {
  store_whole(static_cast<T*>(output) + at, pack);
}

// A pack of a bias in float32; zeros for null.
template <class T, int kCount>
struct Bias {
  float values[kCount];

  __device__ __forceinline__ Bias(const void* bias, int64_t col) {
    Pack<T, kCount> pack;
    if (bias != nullptr) pack = *reinterpret_cast<const Pack<T, kCount>*>(static_cast<const T*>(bias) + col);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = bias == nullptr ? 0.0f : to_float(pack.values[i]);
  }
};

// A form that is known at compile time: one branch a thread instead of one an element.
template <Activation kActivation, bool kSquared = false>
struct Fixed {
  static constexpr Activation activation = kActivation;
  static constexpr bool squared = kSquared;
};

template <class F>
__device__ __forceinline__ void visit_form(const ActivationForm& form, const F& f) {
  switch (form.activation) {
    case Activation::kRelu: return form.squared ? f(Fixed<Activation::kRelu, true>{}) : f(Fixed<Activation::kRelu>{});
    case Activation::kGelu: return f(Fixed<Activation::kGelu>{});
    case Activation::kGeluTanh: return f(Fixed<Activation::kGeluTanh>{});
    case Activation::kSilu: return f(Fixed<Activation::kSilu>{});
    case Activation::kSigmoid: return f(Fixed<Activation::kSigmoid>{});
    case Activation::kTanh: return f(Fixed<Activation::kTanh>{});
    case Activation::kLeakyRelu: return f(Fixed<Activation::kLeakyRelu>{});
    case Activation::kHardswish: return f(Fixed<Activation::kHardswish>{});
    default: return f(Fixed<Activation::kNone>{});
  }
}

template <class F>
__device__ __forceinline__ float value_of(F form, float x) {
  const float value = activate(form.activation, x);
  return form.squared ? value * value : value;
}

// grad times the derivative at x. Where relu is zero its gradient is, even of an infinite one, and NaN lets gradients
// pass: as torch.
template <class F>
__device__ __forceinline__ float gradient_of(F form, float x, float grad) {
  if (form.activation == Activation::kRelu) return x <= 0.0f ? 0.0f : form.squared ? 2.0f * x * grad : grad;
  return grad * activation_grad(form.activation, needs_preact(form.activation) ? x : activate(form.activation, x));
}

template <class T, int kCount, class F>
__device__ __forceinline__ void forward_pack(const GluParams& p, F form, int64_t row, int64_t col) {
  const auto gate = load_pack<T, kCount>(p.gate, row, col);
  const Bias<T, kCount> gate_bias(p.gate_bias, col), up_bias(p.up_bias, col);
  const bool gated = p.up.data != nullptr;
  Pack<T, kCount> up = gate, output;
  if (gated) up = load_pack<T, kCount>(p.up, row, col);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float value = value_of(form, to_float(gate.values[i]) + gate_bias.values[i]);
    output.values[i] = from_float<T>(gated ? value * (to_float(up.values[i]) + up_bias.values[i]) : value);
  }
  store_pack(p.output, row * p.cols + col, output);
}

// With x = gate + gate_bias: grad_gate = grad * (up + up_bias) * form'(x), grad_up = grad * form(x).
template <class T, int kCount, class F>
__device__ __forceinline__ void backward_pack(const GluBackwardParams& p, F form, int64_t group, int64_t col) {
  const Bias<T, kCount> gate_bias(p.gate_bias, col), up_bias(p.up_bias, col);
  const bool gated = p.up.data != nullptr;
  float gate_sums[kCount] = {}, up_sums[kCount] = {};
  const int64_t last = p.rows * (group + 1) / p.groups;
  for (int64_t row = p.rows * group / p.groups; row < last; ++row) {
    const auto grad = load_pack<T, kCount>(p.grad_output, row, col);
    const auto gate = load_pack<T, kCount>(p.gate, row, col);
    Pack<T, kCount> up = gate, grad_gate, grad_up;
    if (gated) up = load_pack<T, kCount>(p.up, row, col);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float dy = to_float(grad.values[i]), x = to_float(gate.values[i]) + gate_bias.values[i];
      const float du = gated ? dy * value_of(form, x) : 0.0f;
      const float dx = gradient_of(form, x, gated ? dy * (to_float(up.values[i]) + up_bias.values[i]) : dy);
      grad_gate.values[i] = from_float<T>(dx);
      grad_up.values[i] = from_float<T>(du);
      gate_sums[i] += dx;
      up_sums[i] += du;
    }
    if (p.grad_gate != nullptr) store_pack(p.grad_gate, row * p.cols + col, grad_gate);
    if (p.grad_up != nullptr) store_pack(p.grad_up, row * p.cols + col, grad_up);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (p.gate_partials != nullptr) static_cast<float*>(p.gate_partials)[group * p.cols + col + i] = gate_sums[i];
    if (p.up_partials != nullptr) static_cast<float*>(p.up_partials)[group * p.cols + col + i] = up_sums[i];
  }
}

// The end of a row goes element by element from memory to memory: a part of a pack would be an array that is indexed at
// run time, which has to lie in local memory.
// machine code: 1>: plain; else: 2 x LDG.128, STG.128
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) glu_kernel(const GluParams p) {
  const Place place = place_of<kCount>(static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, p.cols);
  if (place.row >= p.rows) return;
  visit_form(p.form, [&](auto form) {
    if (place.count == kCount) return forward_pack<T, kCount>(p, form, place.row, place.col);
    for (int i = 0; i < place.count; ++i) forward_pack<T, 1>(p, form, place.row, place.col + i);
  });
}

// machine code: 1>: plain; else: 3 x LDG.128, 2 x STG.128
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) glu_backward_kernel(const GluBackwardParams p) {
  const Place place = place_of<kCount>(static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, p.cols);
  if (place.row >= p.groups) return;
  visit_form(p.form, [&](auto form) {
    if (place.count == kCount) return backward_pack<T, kCount>(p, form, place.row, place.col);
    for (int i = 0; i < place.count; ++i) backward_pack<T, 1>(p, form, place.row, place.col + i);
  });
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

// Outputs are fresh allocations: their rows start at a pack when a row is whole packs, or when there is one row.
template <class T>
bool outputs_fit_packs(int64_t rows, int64_t cols) {
  return rows == 1 || cols % kPackSize<T> == 0;
}

template <class T, class Params>
bool inputs_fit_packs(const Params& p) {
  return rows_fit_packs<T>(p.gate) && rows_fit_packs<T>(p.up) && row_fits_packs(p.gate_bias) &&
         row_fits_packs(p.up_bias);
}

LaunchConfig config_for(int64_t rows, int64_t cols, int count, Stream stream) {
  const int64_t packs = rows * ((cols + count - 1) / count);
  return {dim3(static_cast<unsigned>((packs + kThreads - 1) / kThreads)), dim3(kThreads), stream};
}

}  // namespace

void glu(const GluParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool packs = outputs_fit_packs<T>(params.rows, params.cols) && inputs_fit_packs<T>(params);
    const LaunchConfig config = config_for(params.rows, params.cols, packs ? kPackSize<T> : 1, stream);
    launch("glu", packs ? glu_kernel<T, kPackSize<T>> : glu_kernel<T, 1>, config, params);
  });
}

void glu_backward(const GluBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool packs = outputs_fit_packs<T>(params.rows, params.cols) && inputs_fit_packs<T>(params) &&
                       rows_fit_packs<T>(params.grad_output);
    if (params.groups > 0 && params.cols > 0) {
      const LaunchConfig config = config_for(params.groups, params.cols, packs ? kPackSize<T> : 1, stream);
      launch("glu_backward", packs ? glu_backward_kernel<T, kPackSize<T>> : glu_backward_kernel<T, 1>, config, params);
    }
    if (params.grad_gate_bias != nullptr) {
      sum_partials<T>(params.gate_partials, params.grad_gate_bias, params.groups, params.cols, stream);
    }
    if (params.grad_up_bias != nullptr) {
      sum_partials<T>(params.up_partials, params.grad_up_bias, params.groups, params.cols, stream);
    }
  });
}

}  // namespace warpwright::cuda
