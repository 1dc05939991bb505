// 8-bit quantization: each group of a row (a block of it, or all of it) is read for its largest magnitude, and again,
// from the cache, for the quotients. Short groups take one warp each, so that a block of 128 is one pass of it.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/float8.cuh"
#include "cuda/tile/reduction.cuh"
#include "kernels/quantize.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;
constexpr int64_t kWarpBlock = 1024;  // Groups up to this many elements take a warp, longer ones all threads.

struct Group {
  int64_t index, row, first, count;  // count is negative past the last group.
};

// Group of this thread, when kGroupThreads threads share one.
template <int kGroupThreads, class Params>
__device__ __forceinline__ Group group_of_thread(const Params& p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads / kGroupThreads) + threadIdx.x / kGroupThreads;
  if (index >= p.rows * p.groups) return {index, 0, 0, -1};
  const int64_t row = index / p.groups, first = (index - row * p.groups) * p.block;
  return {index, row, first, p.cols - first < p.block ? p.cols - first : p.block};
}

// Unlike fmaxf this keeps a NaN.
struct MaxOrNan {
  static __device__ __forceinline__ float identity() { return 0.0f; }
  static __device__ __forceinline__ float combine(float a, float b) { return a > b || a != a ? a : b; }
};

template <class F>
__device__ __forceinline__ float scale_of(float amax) {
  if (amax != amax) return __uint_as_float(0x7fc00000u);
  if (amax == 0.0f) return 1.0f;
  return fmaxf(amax / F::kMax, kMinScale);
}

// machine code: SHFL
template <class T, class F, int kGroupThreads>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const QuantizeParams p) {
  static_assert(kGroupThreads == kWarpSize || kGroupThreads == kThreads, "a group has one warp, or the block");
  const Group group = group_of_thread<kGroupThreads>(p);
  if (group.count < 0) return;  // All threads of a group leave together, so the shuffles below are whole.
  const int lane = threadIdx.x % kGroupThreads;
  const T* input = static_cast<const T*>(p.input.data) + p.input.offset(group.row) + group.first * p.input.col_stride;
  float amax = 0.0f;
  for (int64_t i = lane; i < group.count; i += kGroupThreads) {
    amax = MaxOrNan::combine(amax, fabsf(to_float(input[i * p.input.col_stride])));
  }
  if constexpr (kGroupThreads == kWarpSize) {
    amax = warp_reduce<MaxOrNan>(amax);
  } else {
    amax = block_reduce<MaxOrNan, kThreads>(amax);
  }
  const float scale = scale_of<F>(amax);
  if (lane == 0) static_cast<float*>(p.scale)[group.index] = scale;
  uint8_t* output = static_cast<uint8_t*>(p.quantized) + group.row * p.cols + group.first;
  for (int64_t i = lane; i < group.count; i += kGroupThreads) {
    output[i] = encode_float8<F>(to_float(input[i * p.input.col_stride]) / scale);
  }
}

// machine code: plain
template <class T, class F, int kGroupThreads>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(const DequantizeParams p) {
  const Group group = group_of_thread<kGroupThreads>(p);
  const int64_t scale_at = p.scale.offset(group.row) + (group.index - group.row * p.groups) * p.scale.col_stride;
  const uint8_t* input =
      static_cast<const uint8_t*>(p.input.data) + p.input.offset(group.row) + group.first * p.input.col_stride;
  T* output = static_cast<T*>(p.output) + group.row * p.cols + group.first;
  for (int64_t i = threadIdx.x % kGroupThreads; i < group.count; i += kGroupThreads) {
    const float scale = static_cast<const float*>(p.scale.data)[scale_at];
    output[i] = from_float<T>(decode_float8<F>(input[i * p.input.col_stride]) * scale);
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

template <class Params>
LaunchConfig config_for(const Params& params, Stream stream) {
  const int64_t groups = params.rows * params.groups;
  const int64_t groups_per_block = params.block <= kWarpBlock ? kThreads / kWarpSize : 1;
  return {dim3(static_cast<unsigned>((groups + groups_per_block - 1) / groups_per_block)), dim3(kThreads), stream};
}

}  // namespace

void quantize_fp8(const QuantizeParams& params, Stream stream) {
  visit_float(params.input_dtype, [&](auto tag) {
    visit_float8(params.quantized_dtype, [&](auto format) {
      using T = decltype(tag);
      using F = decltype(format);
      const auto kernel =
          params.block <= kWarpBlock ? quantize_kernel<T, F, kWarpSize> : quantize_kernel<T, F, kThreads>;
      launch("quantize_fp8", kernel, config_for(params, stream), params);
    });
  });
}

void dequantize_fp8(const DequantizeParams& params, Stream stream) {
  visit_float(params.output_dtype, [&](auto tag) {
    visit_float8(params.input_dtype, [&](auto format) {
      using T = decltype(tag);
      using F = decltype(format);
      const auto kernel =
          params.block <= kWarpBlock ? dequantize_kernel<T, F, kWarpSize> : dequantize_kernel<T, F, kThreads>;
      launch("dequantize_fp8", kernel, config_for(params, stream), params);
    });
  });
}

}  // namespace warpwright::cuda
