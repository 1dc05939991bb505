// Convolutions on Hopper's tensor cores (sm_90a): matmul's products (gemm_wgmma_kernel.cuh), whose producer gathers
// pixels through im2col maps.
//
//   fprop   m = pixels of y    n = filters         k = (tap, span of channels)   a = x by im2col   b = w
//   dgrad   m = pixels of x    n = channels        k = (tap, span of filters)    a = y by im2col   b = w, rows together
//           for each phase: only every stride-th position and tap belong together
//   wgrad   m = filters        n = (tap, channel)  k = pixels of y               a = y, b = x by im2col, rows together
//
// Each tap's channels are rounded up to spans of 64; TMA reads zeros past the last one.

#pragma once

#include <algorithm>

#include "cuda/conv/wgmma_epilogue.cuh"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace warpwright::cuda {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if WARPWRIGHT_SM90A

// The products of a tile.
template <class T, class Layout, bool kAAlongK, bool kBAlongK, int kSums, class AllStarted>
__device__ __forceinline__ void multiply_conv_tile(unsigned char* shared, int row, int steps,
                                                   typename Layout::Stage& stage, float (&sums)[Layout::kMmas][kSums],
                                                   const AllStarted& all_started) {
  const uint64_t a = operand_descriptor(shared + row * kSpanBytes);
  const uint64_t b = operand_descriptor(shared + Layout::kATileBytes);
  multiply_stages<T, kAAlongK, kBAlongK, Layout::kStageBytes>(sums, a, b, Layout::ring(shared), stage, steps, 1,
                                                              all_started);
}

// Calls f.operator()<kAAlongK, kBAlongK>() for a kernel's operands.
template <class F>
__device__ __forceinline__ void with_operands(const ConvPixelsParams& p, const F& f) {
  p.b.along_k ? f.template operator()<true, true>() : f.template operator()<true, false>();
}
template <class F>
__device__ __forceinline__ void with_operands(const ConvWeightParams&, const F& f) {
  f.template operator()<false, false>();
}

#endif  // WARPWRIGHT_SM90A

// machine code: sm_80: empty; else: HGMMA, UTMALDG, STSM, UTMASTG
template <class Params, int kTileM, int kTileN, bool kPingpong>
__global__ void __launch_bounds__(kWgmmaThreads, 1) conv_wgmma_kernel(const __grid_constant__ Params p) {
#if WARPWRIGHT_SM90A
  using Layout = WgmmaLayout<kTileM, kTileN, kPingpong>;
  constexpr int kRegisters = 40;  // A producer that walks pixels and taps has more to remember.
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const auto multiply = [&](int row, int steps, auto& stage, auto& sums, const auto& all_started) {
    with_operands(p, [&]<bool kAAlongK, bool kBAlongK>() {
      if (p.gemm.dtype == DType::kFloat16) {
        multiply_conv_tile<__half, Layout, kAAlongK, kBAlongK>(shared, row, steps, stage, sums, all_started);
      } else {
        multiply_conv_tile<__nv_bfloat16, Layout, kAAlongK, kBAlongK>(shared, row, steps, stage, sums, all_started);
      }
    });
  };
  specialise_warps<kRegisters>(
      [&] { init_barriers<kTileM, kTileN, kPingpong>(shared, 1); },
      [&](bool leader) { produce<kTileM, kTileN, kPingpong>(p, shared, leader); },
      [&](int consumer) { consume<kTileM, kTileN, kPingpong, false>(p, shared, consumer, multiply); });
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

// Whether a product may be one for these kernels at all: wgmma has its dtype, and numbers of pixels, channels and taps
// are those of 32 bits, with room for a tile that reaches past the end.
inline bool could_take_wgmma(const ConvParams& p) {
  constexpr int64_t kMost = INT32_MAX - 1024;
  const bool half = p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16;
  if (!half || p.groups != 1 || current_device().capability != 90) return false;
  int64_t x_pixels = p.batch, y_pixels = p.batch;
  for (int d = 0; d < kConvDims; ++d) {
    const int64_t stride = p.stride[d], reach = p.kernel[d] * p.dilation[d];
    if (std::max({p.x_size[d], p.y_size[d], p.padding[d], stride, reach}) > kMost) return false;
    x_pixels *= (p.x_size[d] + stride - 1) / stride * stride;  // Phases have as many positions as the largest.
    y_pixels *= p.y_size[d];
    if (std::max(x_pixels, y_pixels) > kMost) return false;
  }
  const int64_t columns = p.taps() * (std::max(p.channels, p.filters) + kBoxRows);
  return columns <= kMost && std::min({x_pixels, y_pixels, p.channels, p.filters}) > 0;
}

// Sets the order of a kernel's tiles: of each of `splits` parts of the sum, or phases, `rows` by `columns`.
inline void set_walk(ConvWgmmaParams& p, const GemmPlan& plan, int64_t rows, int64_t columns, int64_t steps,
                     int64_t splits) {
  constexpr int kBand = 8;
  p.walk.rows = static_cast<unsigned>((rows + plan.tile_m - 1) / plan.tile_m);
  p.walk.cols = static_cast<unsigned>((columns + plan.tile_n - 1) / plan.tile_n);
  p.walk.matrices = p.walk.cluster = 1;
  p.walk.band = kBand;
  p.walk.splits = static_cast<unsigned>(splits);
  p.walk.steps = static_cast<int>(steps);
  p.walk.split_steps = static_cast<int>((steps + splits - 1) / splits);
}

// What every convolution's product has.
inline GemmParams plain_product(DType dtype, int64_t m, int64_t n, void* output) {
  GemmParams g{};
  g.dtype = g.output_dtype = dtype;
  g.m = m;
  g.n = n;
  g.alpha = g.beta = g.output_scale = 1;
  g.batch[0] = g.batch[1] = g.batch[2] = 1;
  g.output = output;
  return g;
}

template <class Params, int kTileM, int kTileN, bool kPingpong>
void launch_conv_wgmma(const char* name, const Params& p, Stream stream) {
  const auto blocks = std::min(p.walk.places(), static_cast<unsigned>(current_device().multiprocessors));
  launch(name, conv_wgmma_kernel<Params, kTileM, kTileN, kPingpong>,
         {dim3(blocks), dim3(kWgmmaThreads), stream, WgmmaLayout<kTileM, kTileN, kPingpong>::kBytes}, p);
}

}  // namespace warpwright::cuda
