// The negative log-likelihood: one thread a row, one element of each row is read, and one is written to a gradient of
// zeros. A target that is neither a class nor ignore_index gives NaN, in the loss and in the gradient of its row.

#include "cuda/loss/loss.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t row_of_thread() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ __forceinline__ float weight_of(const void* weight, int64_t target) {
  return weight == nullptr ? 1.0f : static_cast<const float*>(weight)[target];
}

// machine code: plain
template <class T>
__global__ void __launch_bounds__(kThreads) nll_loss_kernel(const NllLossParams p) {
  const int64_t row = row_of_thread();
  if (row >= p.rows) return;
  const int64_t target = target_of(p.target, row);
  float loss = 0.0f;
  if (target != p.ignore_index) {
    const T* input = static_cast<const T*>(p.input.data) + p.input.offset(row);
    const bool known = target >= 0 && target < p.cols;
    loss = known ? -weight_of(p.weight, target) * to_float(input[target * p.input.col_stride]) : NAN;
  }
  store_as(p.row_loss_dtype, p.row_loss, row, loss);
}

// machine code: plain
template <class T>
__global__ void __launch_bounds__(kThreads) nll_loss_backward_kernel(const NllLossBackwardParams p) {
  const int64_t row = row_of_thread();
  if (row >= p.rows) return;
  const int64_t target = target_of(p.target, row);
  if (target == p.ignore_index) return;
  float scale = load_as(p.grad_loss_dtype, p.grad_loss.data, p.grad_loss.offset(row));
  if (p.total != nullptr) scale /= *static_cast<const float*>(p.total);
  T* grad_input = static_cast<T*>(p.grad_input.data) + p.grad_input.offset(row);
  if (target >= 0 && target < p.cols) {
    grad_input[target * p.grad_input.col_stride] = from_float<T>(-weight_of(p.weight, target) * scale);
  } else {
    grad_input[0] = from_float<T>(NAN);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

LaunchConfig config_of(int64_t rows, Stream stream) {
  return {dim3(static_cast<unsigned>((rows + kThreads - 1) / kThreads)), dim3(kThreads), stream};
}

}  // namespace

void nll_loss(const NllLossParams& params, Stream stream) {
  if (params.rows == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    launch("nll_loss", nll_loss_kernel<decltype(tag)>, config_of(params.rows, stream), params);
  });
}

void nll_loss_backward(const NllLossBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    launch("nll_loss_backward", nll_loss_backward_kernel<decltype(tag)>, config_of(params.rows, stream), params);
  });
}

}  // namespace warpwright::cuda
