// Codes of 8 bits times their scales. A thread has neighbours of one row that share a scale: one load, one store of 16
// bytes, where rows and blocks are whole packs.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/quantize.cuh"
#include "kernels/quantize.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

__device__ __forceinline__ float scale_at(const DequantizeParams& p, int64_t row, int64_t col) {
  return static_cast<const float*>(p.scale.data)[p.scale.offset(row) + col / p.block * p.scale.col_stride];
}
__device__ __forceinline__ float scale_at(const DequantizeMatrixParams& p, int64_t row, int64_t col) {
  return p.scale[p.grid.at(row, col)];
}

// machine code: 1>: plain; else: STG.128
template <class Params, class T, class F, int kCount>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(const Params p) {
  const int64_t packs = p.cols / kCount, index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= p.rows * packs) return;
  const int64_t row = index / packs, col = (index - row * packs) * kCount;
  const float scale = scale_at(p, row, col);
  const uint8_t* from = static_cast<const uint8_t*>(p.input.data) + p.input.offset(row) + col * p.input.col_stride;
  const auto codes = *reinterpret_cast<const Pack<uint8_t, kCount>*>(from);
  Pack<T, kCount> values;
#pragma unroll
  for (int i = 0; i < kCount; ++i) values.values[i] = from_float<T>(decode_code<F>(codes.values[i]) * scale);
  store_whole(static_cast<T*>(p.output) + row * p.cols + col, values);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

// Whether `count` codes that follow each other are one aligned load and have one scale. `block`: columns of a scale.
bool codes_fit_packs(const Rows& codes, int64_t cols, int64_t block, int count) {
  if (cols % count != 0 || (block < cols && block % count != 0) || codes.col_stride != 1) return false;
  if (reinterpret_cast<uintptr_t>(codes.data) % count != 0) return false;
  for (int d = 0; d < codes.ndim; ++d) {
    if (codes.size[d] > 1 && codes.stride[d] % count != 0) return false;
  }
  return true;
}

template <class F, class Params>
void run(const char* name, const Params& params, int64_t block, Stream stream) {
  visit_float(params.output_dtype, [&](auto tag) {
    using T = decltype(tag);
    constexpr int kPack = kPackSize<T>;
    const bool packs = codes_fit_packs(params.input, params.cols, block, kPack);
    const int64_t threads = params.rows * params.cols / (packs ? kPack : 1);
    const LaunchConfig config{dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)), dim3(kThreads), stream};
    launch(name, packs ? dequantize_kernel<Params, T, F, kPack> : dequantize_kernel<Params, T, F, 1>, config, params);
  });
}

}  // namespace

void dequantize_fp8(const DequantizeParams& params, Stream stream) {
  visit_float8(params.input_dtype,
               [&](auto format) { run<decltype(format)>("dequantize_fp8", params, params.block, stream); });
}

void dequantize(const DequantizeMatrixParams& params, Stream stream) {
  visit_codes(params.input_dtype,
              [&](auto format) { run<decltype(format)>("dequantize", params, params.grid.block_cols, stream); });
}

}  // namespace warpwright::cuda
