// What the losses behind a linear layer need beside products and losses: two passes over a gradient.

#include <type_traits>

#include "cuda/loss/loss.cuh"
#include "kernels/linear_loss.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// Tensors of their own, which torch aligns.
// machine code: 16-byte
template <class T>
__global__ void __launch_bounds__(kThreads) scale_kernel(const ScaleParams p) {
  constexpr int kCount = kPackSize<T>;
  const float by = load_as(p.scale_dtype, p.scale, 0);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (first >= p.count) return;
  Piece<T, kCount> piece;
  piece.load(static_cast<const T*>(p.input) + first, 1, true, p.count - first);
#pragma unroll
  for (int i = 0; i < kCount; ++i) piece.values[i] *= by;
  piece.store(static_cast<T*>(p.output) + first, 1, true, p.count - first);
}

// machine code: 16-byte
__global__ void __launch_bounds__(kThreads) accumulate_kernel(const AccumulateParams p) {
  constexpr int kCount = kPackSize<float>;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (first >= p.count) return;
  Piece<float, kCount> sums, addend;
  float* to = static_cast<float*>(p.sums) + first;
  sums.load(to, 1, true, p.count - first);
  addend.load(static_cast<const float*>(p.addend) + first, 1, true, p.count - first);
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums.values[i] += addend.values[i];
  sums.store(to, 1, true, p.count - first);
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

template <class T>
LaunchConfig config_of(int64_t count, Stream stream) {
  constexpr int64_t kPerBlock = kThreads * kPackSize<T>;
  return {dim3(static_cast<unsigned>((count + kPerBlock - 1) / kPerBlock)), dim3(kThreads), stream};
}

}  // namespace

void scale(const ScaleParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    // Gradients in float16 are made in the backward pass, where the loss's scale is known: nothing is left to scale.
    if constexpr (std::is_same_v<T, __half>)
      throw std::logic_error("warpwright: float16 gradients are not scaled");
    else
      launch("scale", scale_kernel<T>, config_of<T>(params.count, stream), params);
  });
}

void accumulate(const AccumulateParams& params, Stream stream) {
  launch("accumulate", accumulate_kernel, config_of<float>(params.count, stream), params);
}

}  // namespace warpwright::cuda
