// Convolution as an implicit matrix product: the operands' tiles are gathered from the tensors where they lie, nothing
// is unfolded in memory. One group is one product; its tiles follow those of the group before.
//
//   forward       m = (n, p, q)   n = filter    k = (c, r, s)     a = input gathered,   b = weight
//   input grad    m = (n, h, w)   n = channel   k = (filter, r, s) a = grad gathered,    b = weight
//   weight grad   m = filter      n = (c, r, s) k = (n, p, q)      a = grad,             b = input gathered
//
// Every sum runs over k in order in one thread: no atomics, the same bits every time.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/gemm_tile.cuh"
#include "kernels/conv.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

struct Index3 {
  int64_t i, j, k;
};
// The three indices of `flat` in a box of (any, size_j, size_k).
__device__ __forceinline__ Index3 split(int64_t flat, int64_t size_j, int64_t size_k) {
  const int64_t k = flat % size_k, rest = flat / size_k;
  return {rest / size_j, rest % size_j, k};
}

// input[n][c][p * stride - padding + r * dilation][...], zero in the padding.
template <class T>
__device__ __forceinline__ float input_at(const Conv2dParams& p, int64_t n, int64_t c, int64_t out_h, int64_t out_w,
                                          int64_t r, int64_t s) {
  const int64_t h = out_h * p.stride_h - p.padding_h + r * p.dilation_h;
  const int64_t w = out_w * p.stride_w - p.padding_w + s * p.dilation_w;
  if (h < 0 || h >= p.height || w < 0 || w >= p.width) return 0.0f;
  return to_float(static_cast<const T*>(p.input.data)[p.input.offset(n, c, h, w)]);
}

// machine code: FFMA
template <class T>
__global__ void __launch_bounds__(kGemmThreads, 2) conv_forward_kernel(const Conv2dParams p) {
  const int64_t group_channels = p.channels / p.groups, group_filters = p.filters / p.groups;
  const int64_t m = p.batch * p.out_height * p.out_width, k = group_channels * p.kernel_h * p.kernel_w;
  const int64_t tiles = (m + kBlockM - 1) / kBlockM * ((group_filters + kBlockN - 1) / kBlockN);
  const int64_t group = blockIdx.x / tiles;
  const T* weight = static_cast<const T*>(p.weight.data);

  const auto a = [&](int64_t row, int64_t col) {
    const Index3 at = split(row, p.out_height, p.out_width), tap = split(col, p.kernel_h, p.kernel_w);
    return input_at<T>(p, at.i, group * group_channels + tap.i, at.j, at.k, tap.j, tap.k);
  };
  const auto b = [&](int64_t filter, int64_t col) {
    const Index3 tap = split(col, p.kernel_h, p.kernel_w);
    return to_float(weight[p.weight.offset(group * group_filters + filter, tap.i, tap.j, tap.k)]);
  };
  const auto store = [&](int64_t row, int64_t col, float value) {
    const Index3 at = split(row, p.out_height, p.out_width);
    const int64_t filter = group * group_filters + col;
    if (p.bias != nullptr) value += to_float(static_cast<const T*>(p.bias)[filter]);
    if (p.residual.data != nullptr) {
      value += to_float(static_cast<const T*>(p.residual.data)[p.residual.offset(at.i, filter, at.j, at.k)]);
    }
    const int64_t to = p.output.offset(at.i, filter, at.j, at.k);
    if (p.preact != nullptr) static_cast<T*>(p.preact)[to] = from_float<T>(value);
    static_cast<T*>(p.output.data)[to] = from_float<T>(activate(p.activation, value));
  };
  // Neighbouring threads walk along k where the channels lie together (channels_last), along the pixels otherwise.
  const bool along_k = p.input.stride[3] != 1;
  gemm_tile(tile_origin(blockIdx.x % tiles, group_filters), m, group_filters, k, a, along_k, b, true, store);
}

// machine code: FFMA
template <class T>
__global__ void __launch_bounds__(kGemmThreads) conv_input_grad_kernel(const Conv2dParams p) {
  const int64_t group_channels = p.channels / p.groups, group_filters = p.filters / p.groups;
  const int64_t m = p.batch * p.height * p.width, k = group_filters * p.kernel_h * p.kernel_w;
  const int64_t tiles = (m + kBlockM - 1) / kBlockM * ((group_channels + kBlockN - 1) / kBlockN);
  const int64_t group = blockIdx.x / tiles;
  const T* grad = static_cast<const T*>(p.output.data);
  const T* weight = static_cast<const T*>(p.weight.data);

  // The output positions that read input (h, w) through tap (r, s): at most one, where the stride divides.
  const auto a = [&](int64_t row, int64_t col) {
    const Index3 at = split(row, p.height, p.width), tap = split(col, p.kernel_h, p.kernel_w);
    const int64_t h = at.j + p.padding_h - tap.j * p.dilation_h, w = at.k + p.padding_w - tap.k * p.dilation_w;
    if (h < 0 || w < 0 || h % p.stride_h != 0 || w % p.stride_w != 0) return 0.0f;
    const int64_t out_h = h / p.stride_h, out_w = w / p.stride_w;
    if (out_h >= p.out_height || out_w >= p.out_width) return 0.0f;
    return to_float(grad[p.output.offset(at.i, group * group_filters + tap.i, out_h, out_w)]);
  };
  const auto b = [&](int64_t channel, int64_t col) {
    const Index3 tap = split(col, p.kernel_h, p.kernel_w);
    return to_float(weight[p.weight.offset(group * group_filters + tap.i, channel, tap.j, tap.k)]);
  };
  const auto store = [&](int64_t row, int64_t channel, float value) {
    const Index3 at = split(row, p.height, p.width);
    const int64_t to = p.input.offset(at.i, group * group_channels + channel, at.j, at.k);
    static_cast<T*>(p.input.data)[to] = from_float<T>(value);
  };
  const bool along_k = p.output.stride[3] != 1;
  gemm_tile(tile_origin(blockIdx.x % tiles, group_channels), m, group_channels, k, a, along_k, b, true, store);
}

// machine code: FFMA
template <class T>
__global__ void __launch_bounds__(kGemmThreads) conv_weight_grad_kernel(const Conv2dParams p) {
  const int64_t group_channels = p.channels / p.groups, group_filters = p.filters / p.groups;
  const int64_t n = group_channels * p.kernel_h * p.kernel_w, k = p.batch * p.out_height * p.out_width;
  const int64_t tiles = (group_filters + kBlockM - 1) / kBlockM * ((n + kBlockN - 1) / kBlockN);
  const int64_t group = blockIdx.x / tiles;
  const T* grad = static_cast<const T*>(p.output.data);

  const auto a = [&](int64_t filter, int64_t col) {
    const Index3 at = split(col, p.out_height, p.out_width);
    return to_float(grad[p.output.offset(at.i, group * group_filters + filter, at.j, at.k)]);
  };
  const auto b = [&](int64_t row, int64_t col) {
    const Index3 at = split(col, p.out_height, p.out_width), tap = split(row, p.kernel_h, p.kernel_w);
    return input_at<T>(p, at.i, group * group_channels + tap.i, at.j, at.k, tap.j, tap.k);
  };
  const auto store = [&](int64_t filter, int64_t row, float value) {
    const Index3 tap = split(row, p.kernel_h, p.kernel_w);
    const int64_t to = p.weight.offset(group * group_filters + filter, tap.i, tap.j, tap.k);
    static_cast<T*>(p.weight.data)[to] = from_float<T>(value);
  };
  const TileOrigin origin = tile_origin(blockIdx.x % tiles, n);
  gemm_tile(origin, group_filters, n, k, a, p.output.stride[3] == 1, b, p.input.stride[3] == 1, store);
}

void launch_groups(const char* name, void (*kernel)(Conv2dParams), const Conv2dParams& params, int64_t m, int64_t n,
                   Stream stream) {
  const int64_t blocks = tile_count(m, n) * params.groups;
  if (blocks == 0) return;
  launch(name, kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kGemmThreads), stream}, params);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void conv_forward(const Conv2dParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t m = params.batch * params.out_height * params.out_width;
    launch_groups("conv_forward", conv_forward_kernel<T>, params, m, params.filters / params.groups, stream);
  });
}

void conv_input_grad(const Conv2dParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t m = params.batch * params.height * params.width;
    launch_groups("conv_input_grad", conv_input_grad_kernel<T>, params, m, params.channels / params.groups, stream);
  });
}

void conv_weight_grad(const Conv2dParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t n = params.channels / params.groups * params.kernel_h * params.kernel_w;
    launch_groups("conv_weight_grad", conv_weight_grad_kernel<T>, params, params.filters / params.groups, n, stream);
  });
}

}  // namespace warpwright::cuda
