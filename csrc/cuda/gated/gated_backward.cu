// Backward of a gated product: the gradients of both factors before the activation, the product again, and both bias
// gradients in two stages, in one pass. A block takes a group of rows, a thread one pack of columns of it; strided or
// unaligned rows are walked one column a thread.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/partials.cuh"
#include "kernels/gated.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

template <class T, int kCount>
__device__ __forceinline__ Pack<T, kCount> load_pack(const Rows& rows, int64_t row, int64_t col) {
  const T* p = static_cast<const T*>(rows.data) + rows.offset(row) + col * rows.col_stride;
  return *reinterpret_cast<const Pack<T, kCount>*>(p);
}

template <class T, int kCount>
__device__ __forceinline__ void store_pack(void* output, int64_t at, const float (&values)[kCount]) {
  if (output == nullptr) return;
  Pack<T, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) pack.values[i] = from_float<T>(values[i]);
  store_whole(static_cast<T*>(output) + at, pack);
}

// One row's pack; adds what it stores to the sums.
template <class T, int kCount>
__device__ __forceinline__ void backward_pack(const GatedBackwardParams& p, int64_t row, int64_t col,
                                              float (&gate_sums)[kCount], float (&up_sums)[kCount]) {
  const auto grad = load_pack<T, kCount>(p.grad, row, col);
  const auto gate = load_pack<T, kCount>(p.gate, row, col);
  Pack<T, kCount> up{};
  const bool gated = p.up.data != nullptr, before = needs_preact(p.activation);
  if (gated) up = load_pack<T, kCount>(p.up, row, col);
  float grad_gate[kCount], grad_up[kCount], product[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float dy = to_float(grad.values[i]), x = to_float(gate.values[i]);
    const float value = before ? activate(p.activation, x) : x, factor = gated ? to_float(up.values[i]) : 1.0f;
    grad_gate[i] = dy * factor * activation_grad(p.activation, x);
    grad_up[i] = dy * value;
    product[i] = value * factor;
    gate_sums[i] += grad_gate[i];
    up_sums[i] += grad_up[i];
  }
  store_pack<T, kCount>(p.grad_gate, row * p.grad_row + col, grad_gate);
  store_pack<T, kCount>(p.grad_up, row * p.grad_row + col, grad_up);
  store_pack<T, kCount>(p.product, row * p.cols + col, product);
}

template <int kCount>
__device__ __forceinline__ void store_sums(void* partials, int64_t at, const float (&sums)[kCount]) {
  if (partials == nullptr) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i) static_cast<float*>(partials)[at + i] = sums[i];
}

// machine code: 1>: plain; else: 3 x LDG.128, 3 x STG.128
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) gated_backward_kernel(const GatedBackwardParams p) {
  const int64_t groups = gridDim.x;
  const int64_t first = p.rows * blockIdx.x / groups, last = p.rows * (blockIdx.x + 1) / groups;
  const int64_t stride = static_cast<int64_t>(gridDim.y) * kThreads * kCount;
  for (int64_t col = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kCount; col < p.cols;
       col += stride) {
    float gate_sums[kCount] = {}, up_sums[kCount] = {};
    for (int64_t row = first; row < last; ++row) backward_pack<T, kCount>(p, row, col, gate_sums, up_sums);
    store_sums(p.gate_partials, blockIdx.x * p.cols + col, gate_sums);
    store_sums(p.up_partials, blockIdx.x * p.cols + col, up_sums);
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void gated_backward(const GatedBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t groups = gated_partials(params.rows);
    if (params.rows > 0 && params.cols > 0) {
      // What is written is fresh memory: with whole packs in a row they start where packs may.
      const bool packs = params.cols % kPackSize<T> == 0 && rows_fit_packs<T>(params.grad) &&
                         rows_fit_packs<T>(params.gate) && (params.up.data == nullptr || rows_fit_packs<T>(params.up));
      constexpr int64_t kMaxGridY = 65535;
      const int64_t columns = kThreads * (packs ? kPackSize<T> : 1), blocks = (params.cols + columns - 1) / columns;
      const dim3 grid(static_cast<unsigned>(groups), static_cast<unsigned>(blocks < kMaxGridY ? blocks : kMaxGridY));
      const auto kernel = packs ? gated_backward_kernel<T, kPackSize<T>> : gated_backward_kernel<T, 1>;
      launch("gated_backward", kernel, {grid, dim3(kThreads), stream}, params);
    }
    const auto sum = [&](const void* partials, void* output) {
      if (output != nullptr) sum_partials<T>(partials, output, groups, params.cols, stream);
    };
    sum(params.gate_partials, params.grad_gate_bias);
    sum(params.up_partials, params.grad_up_bias);
  });
}

}  // namespace warpwright::cuda
