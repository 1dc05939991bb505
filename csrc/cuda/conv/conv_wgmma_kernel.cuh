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

// The products of a tile. beside is multiply_stages'.
template <class T, class Layout, bool kAAlongK, bool kBAlongK, int kSums, class AllStarted, class Beside = Nothing>
__device__ __forceinline__ void multiply_conv_tile(unsigned char* shared, int row, int steps,
                                                   typename Layout::Stage& stage, float (&sums)[Layout::kMmas][kSums],
                                                   const AllStarted& all_started, const Beside& beside = {}) {
  const uint64_t a = operand_descriptor(shared + row * kSpanBytes);
  const uint64_t b = operand_descriptor(shared + Layout::kATileBytes);
  multiply_stages<T, kAAlongK, kBAlongK, Layout::kStageBytes>(sums, a, b, Layout::ring(shared), stage, steps, 1,
                                                              all_started, Nothing{}, beside);
}

// Of pixels with filters.
template <class T, class Layout, int kSums, class AllStarted>
__device__ __forceinline__ void multiply_conv_tile(const ConvPixelsParams& p, unsigned char* shared,
                                                   const WgmmaTile& tile, int row, typename Layout::Stage& stage,
                                                   float (&sums)[Layout::kMmas][kSums], const AllStarted& all_started) {
  if (p.b.along_k) {
    multiply_conv_tile<T, Layout, true, true>(shared, row, tile.steps, stage, sums, all_started);
  } else {
    multiply_conv_tile<T, Layout, true, false>(shared, row, tile.steps, stage, sums, all_started);
  }
}

// Of a weight's gradient. In the first tile of some filters y's sum over the pixels comes with them, if it is wanted:
// one more product, with eight columns of ones, which are alike.
template <class T, class Layout, int kSums, class AllStarted>
__device__ __forceinline__ void multiply_conv_tile(const ConvWeightParams& p, unsigned char* shared,
                                                   const WgmmaTile& tile, int row, typename Layout::Stage& stage,
                                                   float (&sums)[Layout::kMmas][kSums], const AllStarted& all_started) {
  if (p.grad_bias == nullptr || tile.n0 > 0) {
    return multiply_conv_tile<T, Layout, false, false>(shared, row, tile.steps, stage, sums, all_started);
  }
  float row_sums[Layout::kMmas][4];
  const uint64_t ones = operand_descriptor(Layout::buffers(shared).ones);
  multiply_conv_tile<T, Layout, false, false>(
      shared, row, tile.steps, stage, sums, all_started,
      [&](int i, uint64_t a, bool accumulate) { ptx::wgmma<T, 8, false, true>(row_sums[i], a, ones, accumulate); });
  const int lane = fresh_lane(), warp = static_cast<int>(threadIdx.x) / 32 % kWgmmaWarps;
#pragma unroll
  for (int i = 0; i < Layout::kMmas; ++i) {
    ptx::wgmma_registers(row_sums[i]);
    if (lane % 4 != 0) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int filter = tile.m0 + row + i * ptx::kWgmmaM + warp * kWarpRows + half * 8 + lane / 4;
      if (filter >= p.gemm.m) continue;
      if (p.bias_partials != nullptr) {
        p.bias_partials[tile.split * p.gemm.m + filter] = row_sums[i][2 * half];
      } else {
        static_cast<T*>(p.grad_bias)[filter] = from_float<T>(row_sums[i][2 * half]);
      }
    }
  }
}

// By one thread, before the warps part: what the sums of y are multiplied with.
__device__ __forceinline__ void write_ones(const ConvPixelsParams&, unsigned char*) {}
__device__ __forceinline__ void write_ones(const ConvWeightParams& p, unsigned char* ones) {
  if (p.grad_bias == nullptr) return;
  const bool half = p.gemm.dtype == DType::kFloat16;
  const uint32_t one = half ? pack_pair<__half>(1.0f, 1.0f) : pack_pair<__nv_bfloat16>(1.0f, 1.0f);
  for (int i = 0; i < kPatternBytes; i += 16) {
    *reinterpret_cast<uint4*>(ones + i) = make_uint4(one, one, one, one);
  }
  ptx::fence_proxy_async();  // The tensor cores read them.
}

#endif  // WARPWRIGHT_SM90A

// machine code: sm_80: empty; else: HGMMA, UTMALDG, STSM, UTMASTG
template <class Params, int kTileM, int kTileN, bool kPingpong>
__global__ void __launch_bounds__(kWgmmaThreads, 1) conv_wgmma_kernel(const __grid_constant__ Params p) {
#if WARPWRIGHT_SM90A
  using Layout = WgmmaLayout<kTileM, kTileN, kPingpong>;
  constexpr int kRegisters = 40;  // A producer that walks pixels and taps has more to remember.
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const auto multiply = [&](const WgmmaTile& tile, int row, auto& stage, auto& sums, const auto& all_started) {
    if (p.gemm.dtype == DType::kFloat16) {
      multiply_conv_tile<__half, Layout>(p, shared, tile, row, stage, sums, all_started);
    } else {
      multiply_conv_tile<__nv_bfloat16, Layout>(p, shared, tile, row, stage, sums, all_started);
    }
  };
  specialise_warps<kRegisters>(
      [&] {
        init_barriers<kTileM, kTileN, kPingpong>(shared, 1);
        write_ones(p, Layout::buffers(shared).ones);
      },
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
