// The sum or the mean of the losses of rows, in the two stages of kernels/loss.h. In double: losses of both signs
// cancel, and the few additions a row cost nothing beside the row.

#include "cuda/loss/loss.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// Both sums over the block, in thread 0, in a fixed order.
__device__ __forceinline__ void block_sum(double& loss, double& total) {
  __shared__ double losses[kThreads];
  __shared__ double totals[kThreads];
  losses[threadIdx.x] = loss;
  totals[threadIdx.x] = total;
  __syncthreads();
  for (unsigned offset = kThreads / 2; offset > 0; offset /= 2) {
    if (threadIdx.x < offset) {
      losses[threadIdx.x] += losses[threadIdx.x + offset];
      totals[threadIdx.x] += totals[threadIdx.x + offset];
    }
    __syncthreads();
  }
  loss = losses[0];
  total = totals[0];
}

// What a row adds to the divisor of the mean.
__device__ __forceinline__ float weight_of(const LossSumsParams& p, int64_t row) {
  if (p.target.data == nullptr) return 1.0f;
  const int64_t target = target_of(p.target, row);
  if (target == p.ignore_index) return 0.0f;
  if (p.weight == nullptr) return 1.0f;
  return target >= 0 && target < p.classes ? static_cast<const float*>(p.weight)[target] : NAN;
}

// machine code: plain
__global__ void __launch_bounds__(kThreads) loss_sums_kernel(const LossSumsParams p) {
  const int64_t first = p.rows * blockIdx.x / gridDim.x;
  const int64_t last = p.rows * (blockIdx.x + 1) / gridDim.x;
  double loss = 0.0, total = 0.0;
  for (int64_t row = first + threadIdx.x; row < last; row += kThreads) {
    if (!p.total_only) loss += static_cast<const float*>(p.row_loss)[row];
    total += weight_of(p, row);
  }
  block_sum(loss, total);
  if (threadIdx.x == 0) {
    static_cast<float*>(p.partial_loss)[blockIdx.x] = static_cast<float>(loss);
    static_cast<float*>(p.partial_total)[blockIdx.x] = static_cast<float>(total);
  }
}

// machine code: plain
__global__ void __launch_bounds__(kThreads) loss_finish_kernel(const LossSumsParams p) {
  static_assert(kMaxLossPartials <= kThreads, "one thread takes one partial");
  const bool mine = threadIdx.x < loss_partials(p.rows);
  double loss = mine ? static_cast<const float*>(p.partial_loss)[threadIdx.x] : 0.0f;
  double total = mine ? static_cast<const float*>(p.partial_total)[threadIdx.x] : 0.0f;
  block_sum(loss, total);
  if (threadIdx.x != 0) return;
  *static_cast<float*>(p.total) = static_cast<float>(total);
  // Without a row that counts the mean is 0 / 0, NaN, as in PyTorch.
  if (p.total_only) return;
  if (p.reduction == Reduction::kMean) loss /= total;
  store_as(p.loss_dtype, p.loss, 0, static_cast<float>(p.factor * loss));
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launcher

void loss_sums(const LossSumsParams& params, Stream stream) {
  const auto partials = static_cast<unsigned>(loss_partials(params.rows));
  launch("loss_sums", loss_sums_kernel, {dim3(partials), dim3(kThreads), stream}, params);
  launch("loss_finish", loss_finish_kernel, {dim3(1), dim3(kThreads), stream}, params);
}

}  // namespace warpwright::cuda
