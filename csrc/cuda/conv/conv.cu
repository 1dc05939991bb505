// Convolution as an implicit matrix product: the operands' tiles are gathered from the tensors where they lie, nothing
// is unfolded in memory. One group is one product; its tiles follow those of the group before.
//
//   fprop   m = (n, position in y)   n = filter        k = (channel, tap)        a = x gathered,  b = w
//   dgrad   m = (n, position in x)   n = channel       k = (filter, tap)         a = y gathered,  b = w
//           once for each phase: only every stride-th position and tap belong together
//   wgrad   m = filter               n = (channel, tap)  k = (n, position in y)  a = y,           b = x gathered
//
// Every sum runs over k in order in one thread: no atomics, the same bits every time. Any strides and sizes, and
// float32 multiplied as float32; conv_wgmma.cuh has what Hopper's tensor cores take, conv_mma.cuh what any tensor cores
// do, depthwise.h what has a filter a channel. conv_plan.cu chooses among them.

#include "cuda/conv/conv_mma.cuh"
#include "cuda/conv/conv_wgmma.cuh"
#include "cuda/conv/depthwise.h"
#include "cuda/conv/epilogue.cuh"
#include "cuda/conv/geometry.cuh"
#include "cuda/launch.h"
#include "cuda/tile/gemm_tile.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// The element of x that filter tap `tap` at position `at` of y meets, zero in the padding.
template <class T>
__device__ __forceinline__ float x_at(const ConvParams& p, const ConvPlace& at, int64_t channel, const ConvPlace& tap) {
  int64_t offset = at.line * p.x.stride[0] + channel * p.x.stride[1];
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    const int64_t i = at.position[d] * p.stride[d] - p.padding[d] + tap.position[d] * p.dilation[d];
    if (i < 0 || i >= p.x_size[d]) return 0.0f;
    offset += i * p.x.stride[2 + d];
  }
  return to_float(static_cast<const T*>(p.x.data)[offset]);
}

// The element of y that meets position `at` of a phase of x through the phase's tap `tap`, zero past its edges.
template <class T>
__device__ __forceinline__ float y_at(const ConvParams& p, const ConvPhase& phase, const ConvPlace& at, int64_t filter,
                                      const ConvPlace& tap) {
  int64_t offset = at.line * p.y.stride[0] + filter * p.y.stride[1];
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    const int64_t i = phase.first_y[d] + at.position[d] - tap.position[d] * phase.y_step[d];
    if (i < 0 || i >= p.y_size[d]) return 0.0f;
    offset += i * p.y.stride[2 + d];
  }
  return to_float(static_cast<const T*>(p.y.data)[offset]);
}

// machine code: FFMA
template <class T>
__global__ void __launch_bounds__(kGemmThreads) conv_fprop_kernel(const ConvParams p) {
  const int64_t m = p.y_pixels(), n = p.group_filters(), k = p.group_channels() * p.taps();
  const int64_t tiles = tile_count(m, n), group = blockIdx.x / tiles;
  const T* w = static_cast<const T*>(p.w.data);
  const auto a = [&](int64_t row, int64_t col) {
    const ConvPlace tap = place_at(col, p.kernel);
    return x_at<T>(p, place_at(row, p.y_size), group * p.group_channels() + tap.line, tap);
  };
  const auto b = [&](int64_t filter, int64_t col) {
    const ConvPlace tap = place_at(col, p.kernel);
    return to_float(w[(group * n + filter) * p.w.stride[0] + tap.line * p.w.stride[1] + offset_in(p.w, tap)]);
  };
  const auto store = [&](int64_t row, int64_t col, float value) {
    store_element<T>(p, p.y, place_at(row, p.y_size), group * n + col, value);
  };
  // Neighbouring threads walk along k where the channels lie together (channels last), along the pixels otherwise.
  const bool along_k = p.x.stride[1] == 1 && p.x.stride[4] != 1;
  gemm_tile(tile_origin(blockIdx.x % tiles, n), m, n, k, a, along_k, b, true, store);
}

// machine code: FFMA
template <class T>
__global__ void __launch_bounds__(kGemmThreads) conv_dgrad_kernel(const ConvParams p) {
  const int64_t n = p.group_channels(), tiles = tile_count(most_phase_pixels(p), n), phases = conv_phases(p);
  const int64_t group = blockIdx.x / (tiles * phases);
  const ConvPhase phase = phase_at(p, blockIdx.x / tiles % phases);
  const int64_t m = phase.pixels(p.batch), k = p.group_filters() * phase.tap_count();
  const T* w = static_cast<const T*>(p.w.data);
  const auto a = [&](int64_t row, int64_t col) {
    const ConvPlace tap = place_at(col, phase.taps);
    return y_at<T>(p, phase, place_at(row, phase.size), group * p.group_filters() + tap.line, tap);
  };
  const auto b = [&](int64_t channel, int64_t col) {
    ConvPlace tap = place_at(col, phase.taps);
    for (int d = 0; d < kConvDims; ++d) tap.position[d] = phase.first_tap[d] + tap.position[d] * phase.tap_step[d];
    const int64_t filter = group * p.group_filters() + tap.line;
    return to_float(w[filter * p.w.stride[0] + channel * p.w.stride[1] + offset_in(p.w, tap)]);
  };
  const auto store = [&](int64_t row, int64_t channel, float value) {
    ConvPlace at = place_at(row, phase.size);
    for (int d = 0; d < kConvDims; ++d) at.position[d] = phase.origin[d] + at.position[d] * p.stride[d];
    store_element<T>(p, p.x, at, group * n + channel, value);
  };
  const bool along_k = p.y.stride[1] == 1 && p.y.stride[4] != 1;
  gemm_tile(tile_origin(blockIdx.x % tiles, n), m, n, k, a, along_k, b, true, store);
}

// machine code: FFMA
template <class T>
__global__ void __launch_bounds__(kGemmThreads) conv_wgrad_kernel(const ConvParams p) {
  const int64_t m = p.group_filters(), n = p.group_channels() * p.taps(), k = p.y_pixels();
  const int64_t tiles = tile_count(m, n), group = blockIdx.x / tiles;
  const T* y = static_cast<const T*>(p.y.data);
  const auto a = [&](int64_t filter, int64_t col) {
    const ConvPlace at = place_at(col, p.y_size);
    return to_float(y[at.line * p.y.stride[0] + (group * m + filter) * p.y.stride[1] + offset_in(p.y, at)]);
  };
  const auto b = [&](int64_t row, int64_t col) {
    const ConvPlace tap = place_at(row, p.kernel);
    return x_at<T>(p, place_at(col, p.y_size), group * p.group_channels() + tap.line, tap);
  };
  const auto store = [&](int64_t filter, int64_t row, float value) {
    const ConvPlace tap = place_at(row, p.kernel);
    const int64_t to = (group * m + filter) * p.w.stride[0] + tap.line * p.w.stride[1] + offset_in(p.w, tap);
    static_cast<T*>(p.w.data)[to] = from_float<T>(value);
  };
  const bool y_along_k = p.y.stride[4] == 1, x_along_k = p.x.stride[4] == 1;
  gemm_tile(tile_origin(blockIdx.x % tiles, n), m, n, k, a, y_along_k, b, x_along_k, store);
}

void launch_products(const char* name, void (*kernel)(ConvParams), const ConvParams& params, int64_t count, int64_t m,
                     int64_t n, Stream stream) {
  const int64_t blocks = tile_count(m, n) * count;
  if (blocks == 0) return;
  launch(name, kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kGemmThreads), stream}, params);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

// Of 16-bit tensors on the tensor cores. The tiles of FFMA leave their sums in registers, each thread those of its own
// places, and so do strips: a pass over what was stored finds the statistics there. So it does for TF32, whose tile has
// fewer columns than store_statistics' warps share among them.
int64_t conv_statistics_slab(const GemmPlan& plan) {
  return plan.kernel == GemmKernel::kWgmma || plan.kernel == GemmKernel::kMma ? plan.tile_m : 0;
}

void conv_fprop(const ConvParams& params, const GemmPlan& plan, Stream stream) {
  if (plan.kernel == GemmKernel::kWgmma) return conv_fprop_wgmma(params, plan, stream);
  if (plan.kernel == GemmKernel::kDepthwise) return depthwise_fprop(params, stream);
  if (plan.kernel != GemmKernel::kSimple) return conv_fprop_mma(params, plan, stream);
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch_products("conv_fprop", conv_fprop_kernel<T>, params, params.groups, params.y_pixels(),
                    params.group_filters(), stream);
  });
}

void conv_dgrad(const ConvParams& params, const GemmPlan& plan, Stream stream) {
  if (plan.kernel == GemmKernel::kWgmma) return conv_dgrad_wgmma(params, plan, stream);
  if (plan.kernel == GemmKernel::kDepthwise) return depthwise_dgrad(params, stream);
  if (plan.kernel != GemmKernel::kSimple) return conv_dgrad_mma(params, plan, stream);
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch_products("conv_dgrad", conv_dgrad_kernel<T>, params, params.groups * conv_phases(params),
                    most_phase_pixels(params), params.group_channels(), stream);
  });
}

// The tensor cores' sums are those of y itself in 16 bits, of TF32 those of what it is rounded to. The tiles of FFMA
// have no thread that meets all of a row.
bool conv_sums_bias(const ConvParams& params, const GemmPlan& plan) {
  if (plan.kernel == GemmKernel::kDepthwise) return true;
  return params.dtype != DType::kFloat32 && plan.kernel != GemmKernel::kSimple;
}

void conv_wgrad(const ConvParams& params, const GemmPlan& plan, float* partials, Stream stream) {
  if (plan.kernel == GemmKernel::kWgmma) return conv_wgrad_wgmma(params, plan, partials, stream);
  if (plan.kernel == GemmKernel::kDepthwise) return depthwise_wgrad(params, partials, plan.splits, stream);
  if (plan.kernel != GemmKernel::kSimple) return conv_wgrad_mma(params, plan, partials, stream);
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t n = params.group_channels() * params.taps();
    launch_products("conv_wgrad", conv_wgrad_kernel<T>, params, params.groups, params.group_filters(), n, stream);
  });
}

}  // namespace warpwright::cuda
