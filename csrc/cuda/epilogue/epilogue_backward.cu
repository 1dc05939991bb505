// Backward of an epilogue: grad_preact = grad_output * activation'(saved) in one pass, and the bias gradient in two
// stages. With the channels in the columns a block takes a group of rows and a thread a column of it; with the
// channels in the rows (NCHW) a block takes a row and adds it up.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/partials.cuh"
#include "cuda/tile/reduction.cuh"
#include "kernels/epilogue.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// Writes grad_preact[row][col] and returns it in float32.
template <class T>
__device__ __forceinline__ float backward_element(const EpilogueBackwardParams& p, int64_t row, int64_t col,
                                                  int64_t grad_row, int64_t saved_row) {
  float g = to_float(static_cast<const T*>(p.grad_output.data)[grad_row + col * p.grad_output.col_stride]);
  g *= static_cast<float>(p.scale);
  if (p.saved.data != nullptr) {
    const T saved = static_cast<const T*>(p.saved.data)[saved_row + col * p.saved.col_stride];
    g *= activation_grad(p.activation, to_float(saved));
  }
  if (p.grad_preact != nullptr) static_cast<T*>(p.grad_preact)[row * p.cols + col] = from_float<T>(g);
  return g;
}

// machine code: plain
template <class T>
__global__ void __launch_bounds__(kThreads) epilogue_backward_cols_kernel(const EpilogueBackwardParams p) {
  const int64_t groups = gridDim.x;
  const int64_t first = p.rows * blockIdx.x / groups, last = p.rows * (blockIdx.x + 1) / groups;
  const int64_t stride = static_cast<int64_t>(gridDim.y) * kThreads;
  for (int64_t col = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x; col < p.cols; col += stride) {
    float sum = 0.0f;
    for (int64_t row = first; row < last; ++row) {
      sum += backward_element<T>(p, row, col, p.grad_output.offset(row), p.saved.offset(row));
    }
    if (p.partials != nullptr) static_cast<float*>(p.partials)[blockIdx.x * p.cols + col] = sum;
  }
}

// machine code: SHFL
template <class T>
__global__ void __launch_bounds__(kThreads) epilogue_backward_rows_kernel(const EpilogueBackwardParams p) {
  const int64_t row = blockIdx.x;
  const int64_t grad_row = p.grad_output.offset(row), saved_row = p.saved.offset(row);
  float sum = 0.0f;
  for (int64_t col = threadIdx.x; col < p.cols; col += kThreads) {
    sum += backward_element<T>(p, row, col, grad_row, saved_row);
  }
  sum = block_reduce<Sum, kThreads>(sum);
  if (p.partials != nullptr && threadIdx.x == 0) static_cast<float*>(p.partials)[row] = sum;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void epilogue_backward(const EpilogueBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t count = epilogue_partials(params.rows, params.channels, params.channels_in_rows);
    if (params.rows > 0 && params.cols > 0) {
      if (params.channels_in_rows) {
        const LaunchConfig config{dim3(static_cast<unsigned>(params.rows)), dim3(kThreads), stream};
        launch("epilogue_backward_rows", epilogue_backward_rows_kernel<T>, config, params);
      } else {
        constexpr int64_t kMaxGridY = 65535;
        const int64_t blocks = (params.cols + kThreads - 1) / kThreads;
        const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(blocks < kMaxGridY ? blocks : kMaxGridY));
        launch("epilogue_backward_cols", epilogue_backward_cols_kernel<T>, {grid, dim3(kThreads), stream}, params);
      }
    }
    if (params.grad_bias != nullptr) {
      sum_partials<T>(params.partials, params.grad_bias, count, params.channels, stream);
    }
  });
}

}  // namespace warpwright::cuda
