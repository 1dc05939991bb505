// Adds up the parts of a weight's gradient.

#include <algorithm>

#include "cuda/conv/epilogue.cuh"
#include "cuda/conv/wgrad_parts.h"
#include "cuda/launch.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kReduceThreads = 256;

// machine code: plain
template <class T>
__global__ void __launch_bounds__(kReduceThreads) conv_wgrad_reduce_kernel(const WgradParams params) {
  const ConvParams& p = params.conv;
  const int64_t columns = p.group_channels() * p.taps(), count = p.filters * columns;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  const auto total = [&](const float* partials, int64_t of, int64_t at) {
    float sum = 0.0f;
    for (int split = 0; split < params.splits; ++split) sum += partials[split * of + at];
    return sum;
  };
  if (i < count) {
    store_weight<T>(p, i / columns, i % columns, total(params.partials, count, i));
  } else if (p.grad_bias != nullptr && i < count + p.filters) {
    store_bias_grad<T>(p, i - count, total(params.bias_partials(), p.filters, i - count));
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

int allowed_splits(const ConvParams& p, int64_t wanted) {
  const int64_t each = 4 * p.filters * p.group_channels() * p.taps();
  return each == 0 ? 1 : static_cast<int>(std::max<int64_t>(1, std::min(wanted, gemm_plan::kMostPartBytes / each)));
}

void reduce_wgrad(const WgradParams& params, Stream stream) {
  const ConvParams& p = params.conv;
  const int64_t biases = p.grad_bias != nullptr ? p.filters : 0;
  const int64_t count = p.filters * p.group_channels() * p.taps() + biases;
  const dim3 blocks(static_cast<unsigned>((count + kReduceThreads - 1) / kReduceThreads));
  visit_float(p.dtype, [&](auto tag) {
    launch("conv_wgrad_reduce", conv_wgrad_reduce_kernel<decltype(tag)>, {blocks, dim3(kReduceThreads), stream},
           params);
  });
}

}  // namespace warpwright::cuda
