// Cross entropy over classes: one block a row. The maximum and the sum of exponentials come from one read of the row,
// the sum being rescaled whenever the maximum moves (Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018); the backward pass reads the row again and needs only its log-sum-exp. Logits are never written.
//
// A target that is neither a class nor ignore_index gives NaN, in the loss and in the gradient of its row, and nothing
// is read through it: the host cannot look at the targets without waiting for the GPU.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/reduction.cuh"
#include "kernels/loss.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

__device__ __forceinline__ float load_as(DType dtype, const void* data, int64_t index) {
  switch (dtype) {
    case DType::kFloat16: return to_float(static_cast<const __half*>(data)[index]);
    case DType::kBFloat16: return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
    default: return static_cast<const float*>(data)[index];
  }
}

__device__ __forceinline__ void store_as(DType dtype, void* data, int64_t index, float value) {
  switch (dtype) {
    case DType::kFloat16: static_cast<__half*>(data)[index] = from_float<__half>(value); break;
    case DType::kBFloat16: static_cast<__nv_bfloat16*>(data)[index] = from_float<__nv_bfloat16>(value); break;
    default: static_cast<float*>(data)[index] = value;
  }
}

__device__ __forceinline__ int64_t target_of(const Rows& target, int64_t row) {
  return static_cast<const int64_t*>(target.data)[target.offset(row)];
}

// max, and sum = sum of exp(x - max), of the elements seen so far.
struct OnlineSum {
  float max = -INFINITY, sum = 0.0f;

  __device__ __forceinline__ void add(float x) {
    if (x > max) {
      // x - x is 0, or NaN for an infinite logit, whose softmax is NaN.
      sum = sum * expf(max - x) + (1.0f + (x - x));
      max = x;
    } else if (x != -INFINITY) {
      sum += expf(x - max);  // NaN comes here.
    }
  }
  // The sum with respect to a maximum over more elements.
  __device__ __forceinline__ float rescaled(float new_max) const {
    return max == -INFINITY ? sum : sum * expf(max - new_max);
  }
};

// The loss of class t is log_sum + (max - x[t]), which keeps its digits where max is large; its mean over the classes
// is log_sum + mean(max - x).
// machine code: SHFL, MUFU.EX2
template <class T>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(const CrossEntropyParams p) {
  const float smoothing = static_cast<float>(p.label_smoothing);
  float* lse = static_cast<float*>(p.lse);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t target = target_of(p.target, row);
    if (target == p.ignore_index) {  // The same for every thread of the block.
      if (threadIdx.x == 0) {
        lse[row] = 0.0f;
        store_as(p.row_loss_dtype, p.row_loss, row, 0.0f);
      }
      continue;
    }
    const T* input = static_cast<const T*>(p.input.data) + p.input.offset(row);
    OnlineSum online;
    for (int64_t col = threadIdx.x; col < p.cols; col += kThreads)
      online.add(to_float(input[col * p.input.col_stride]));
    const float max = block_reduce<Max, kThreads>(online.max);
    const float log_sum = logf(block_reduce<Sum, kThreads>(online.rescaled(max)));
    float gaps = 0.0f;
    if (smoothing > 0.0f) {
      for (int64_t col = threadIdx.x; col < p.cols; col += kThreads) {
        gaps += max - to_float(input[col * p.input.col_stride]);
      }
      gaps = block_reduce<Sum, kThreads>(gaps);
    }
    if (threadIdx.x != 0) continue;
    lse[row] = max + log_sum;
    float loss = NAN;
    if (target >= 0 && target < p.cols) {
      loss = log_sum + (max - to_float(input[target * p.input.col_stride]));
      if (smoothing > 0.0f) {
        loss = (1.0f - smoothing) * loss + smoothing * (log_sum + gaps / static_cast<float>(p.cols));
      }
    }
    store_as(p.row_loss_dtype, p.row_loss, row, loss);
  }
}

// Both sums over the block, in thread 0, in a fixed order.
__device__ __forceinline__ void block_sum(float& loss, int64_t& valid) {
  __shared__ float losses[kThreads];
  __shared__ int64_t valids[kThreads];
  losses[threadIdx.x] = loss;
  valids[threadIdx.x] = valid;
  __syncthreads();
  for (unsigned offset = kThreads / 2; offset > 0; offset /= 2) {
    if (threadIdx.x < offset) {
      losses[threadIdx.x] += losses[threadIdx.x + offset];
      valids[threadIdx.x] += valids[threadIdx.x + offset];
    }
    __syncthreads();
  }
  loss = losses[0];
  valid = valids[0];
}

// machine code: plain
__global__ void __launch_bounds__(kThreads) cross_entropy_sum_rows_kernel(const CrossEntropyParams p) {
  const int64_t first = p.rows * blockIdx.x / gridDim.x;
  const int64_t last = p.rows * (blockIdx.x + 1) / gridDim.x;
  float loss = 0.0f;
  int64_t valid = 0;
  for (int64_t row = first + threadIdx.x; row < last; row += kThreads) {
    loss += static_cast<const float*>(p.row_loss)[row];
    valid += target_of(p.target, row) != p.ignore_index;
  }
  block_sum(loss, valid);
  if (threadIdx.x == 0) {
    static_cast<float*>(p.partial_loss)[blockIdx.x] = loss;
    p.partial_valid[blockIdx.x] = valid;
  }
}

// machine code: plain
__global__ void __launch_bounds__(kThreads) cross_entropy_finish_kernel(const CrossEntropyParams p) {
  static_assert(kMaxLossPartials <= kThreads, "one thread takes one partial");
  const bool mine = threadIdx.x < loss_partials(p.rows);
  float loss = mine ? static_cast<const float*>(p.partial_loss)[threadIdx.x] : 0.0f;
  int64_t valid = mine ? p.partial_valid[threadIdx.x] : 0;
  block_sum(loss, valid);
  if (threadIdx.x != 0) return;
  // Without a row that counts the mean is 0 / 0, NaN, as in PyTorch.
  if (p.reduction == Reduction::kMean) loss /= static_cast<float>(valid);
  store_as(p.loss_dtype, p.loss, 0, loss);
  *p.valid = valid;
}

// grad_input = grad * (softmax(x) - label_smoothing / cols - (1 - label_smoothing) at the target).
// machine code: MUFU.EX2
template <class T>
__global__ void __launch_bounds__(kThreads) cross_entropy_backward_kernel(const CrossEntropyBackwardParams p) {
  const float smoothing = static_cast<float>(p.label_smoothing);
  const float everywhere = smoothing / static_cast<float>(p.cols);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t target = target_of(p.target, row);
    const bool ignored = target == p.ignore_index;
    const bool known = target >= 0 && target < p.cols;
    float scale = load_as(p.grad_loss_dtype, p.grad_loss.data, p.grad_loss.offset(row));
    if (p.valid != nullptr) scale /= static_cast<float>(*p.valid);
    if (!known) scale = NAN;
    const float lse = static_cast<const float*>(p.lse)[row];
    const T* input = static_cast<const T*>(p.input.data) + p.input.offset(row);
    T* grad_input = static_cast<T*>(p.grad_input.data) + p.grad_input.offset(row);
    for (int64_t col = threadIdx.x; col < p.cols; col += kThreads) {
      float grad = 0.0f;
      if (!ignored) {
        grad = expf(to_float(input[col * p.input.col_stride]) - lse) - everywhere;
        grad = scale * (col == target ? grad - (1.0f - smoothing) : grad);
      }
      grad_input[col * p.grad_input.col_stride] = from_float<T>(grad);
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

// More rows than a grid has blocks are walked in strides of the grid.
dim3 grid_of_rows(int64_t rows) {
  constexpr int64_t kMaxBlocks = 0x7fffffff;
  return dim3(static_cast<unsigned>(rows < kMaxBlocks ? rows : kMaxBlocks));
}

}  // namespace

void cross_entropy(const CrossEntropyParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    if (params.rows == 0) return;
    const LaunchConfig config{grid_of_rows(params.rows), dim3(kThreads), stream};
    launch("cross_entropy", cross_entropy_kernel<decltype(tag)>, config, params);
  });
  if (params.reduction == Reduction::kNone) return;
  const auto partials = static_cast<unsigned>(loss_partials(params.rows));
  launch("cross_entropy_sum_rows", cross_entropy_sum_rows_kernel, {dim3(partials), dim3(kThreads), stream}, params);
  launch("cross_entropy_finish", cross_entropy_finish_kernel, {dim3(1), dim3(kThreads), stream}, params);
}

void cross_entropy_backward(const CrossEntropyBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    const LaunchConfig config{grid_of_rows(params.rows), dim3(kThreads), stream};
    launch("cross_entropy_backward", cross_entropy_backward_kernel<decltype(tag)>, config, params);
  });
}

}  // namespace warpwright::cuda
