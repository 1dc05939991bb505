// RMS norm (Zhang and Sennrich, 2019), with an optional residual added first: y = h / sqrt(mean(h^2) + eps) * weight,
// h = input + residual. Fusing the addition saves one write and one read of the activation.
// Forward: one block a row. Backward: one block a group of rows, so that each block can keep the weight gradient of
// its own rows; a second kernel adds the groups in order.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/partials.cuh"
#include "cuda/tile/reduction.cuh"
#include "kernels/norm.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const RmsNormParams p) {
  const int64_t row = blockIdx.x;
  const T* input = static_cast<const T*>(p.input.data) + p.input.offset(row);
  const T* residual =
      p.residual.data == nullptr ? nullptr : static_cast<const T*>(p.residual.data) + p.residual.offset(row);
  const T* weight = static_cast<const T*>(p.weight);
  T* output = static_cast<T*>(p.output) + row * p.cols;
  T* sum = p.sum == nullptr ? nullptr : static_cast<T*>(p.sum) + row * p.cols;

  // Rounded to T before it is normalised, so that the result is that of the unfused addition.
  const auto load = [&](int64_t col) {
    const float x = to_float(input[col * p.input.col_stride]);
    if (residual == nullptr) return x;
    return to_float(from_float<T>(x + to_float(residual[col * p.residual.col_stride])));
  };

  float squares = 0.0f;
  for (int64_t col = threadIdx.x; col < p.cols; col += kThreads) {
    const float h = load(col);
    if (sum != nullptr) sum[col] = from_float<T>(h);
    squares += h * h;
  }
  const float mean = block_reduce<Sum, kThreads>(squares) / static_cast<float>(p.cols);
  const float rstd = 1.0f / sqrtf(mean + static_cast<float>(p.eps));
  if (threadIdx.x == 0) static_cast<float*>(p.rstd)[row] = rstd;
  for (int64_t col = threadIdx.x; col < p.cols; col += kThreads) {
    const float scale = weight == nullptr ? 1.0f : to_float(weight[col]);
    output[col] = from_float<T>(load(col) * rstd * scale);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) rms_norm_backward_kernel(const RmsNormBackwardParams p) {
  const int64_t blocks = gridDim.x;
  const int64_t first = p.rows * blockIdx.x / blocks;
  const int64_t last = p.rows * (blockIdx.x + 1) / blocks;
  const T* weight = static_cast<const T*>(p.weight);
  float* partial = p.partials == nullptr ? nullptr : static_cast<float*>(p.partials) + blockIdx.x * p.cols;
  if (partial != nullptr) {
    // Each thread owns the same columns throughout, so no barrier is needed around its partial sums.
    for (int64_t col = threadIdx.x; col < p.cols; col += kThreads) partial[col] = 0.0f;
  }

  for (int64_t row = first; row < last; ++row) {
    const T* grad = static_cast<const T*>(p.grad_output.data) + p.grad_output.offset(row);
    const T* x = static_cast<const T*>(p.sum.data) + p.sum.offset(row);
    const float rstd = static_cast<const float*>(p.rstd)[row];
    float dot = 0.0f;
    for (int64_t col = threadIdx.x; col < p.cols; col += kThreads) {
      const float dy = to_float(grad[col * p.grad_output.col_stride]);
      const float xhat = to_float(x[col * p.sum.col_stride]) * rstd;
      if (partial != nullptr) partial[col] += dy * xhat;
      dot += dy * (weight == nullptr ? 1.0f : to_float(weight[col])) * xhat;
    }
    const float mean = block_reduce<Sum, kThreads>(dot) / static_cast<float>(p.cols);
    if (p.grad_input == nullptr) continue;
    const T* extra =
        p.grad_sum.data == nullptr ? nullptr : static_cast<const T*>(p.grad_sum.data) + p.grad_sum.offset(row);
    T* grad_input = static_cast<T*>(p.grad_input) + row * p.cols;
    for (int64_t col = threadIdx.x; col < p.cols; col += kThreads) {
      const float dy = to_float(grad[col * p.grad_output.col_stride]);
      const float xhat = to_float(x[col * p.sum.col_stride]) * rstd;
      float dx = (dy * (weight == nullptr ? 1.0f : to_float(weight[col])) - xhat * mean) * rstd;
      if (extra != nullptr) dx += to_float(extra[col * p.grad_sum.col_stride]);
      grad_input[col] = from_float<T>(dx);
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void rms_norm(const RmsNormParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    const LaunchConfig config{dim3(static_cast<unsigned>(params.rows)), dim3(kThreads), stream};
    launch("rms_norm", rms_norm_kernel<decltype(tag)>, config, params);
  });
}

void rms_norm_backward(const RmsNormBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t blocks = norm_partials(params.rows);
    if (blocks > 0) {
      const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream};
      launch("rms_norm_backward", rms_norm_backward_kernel<T>, config, params);
    }
    if (params.grad_weight != nullptr) {
      sum_partials<T>(params.partials, params.grad_weight, blocks, params.cols, stream);
    }
  });
}

}  // namespace warpwright::cuda
