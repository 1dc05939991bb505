// Matrix product with a fused epilogue, for any strides, sizes and alignment: bias, residual and activation are applied
// to the accumulators, so the product itself never reaches memory. plan.cu chooses among the kernels of
// this folder; the one here takes everything.

#include "cuda/launch.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/matmul/gemm_mma.cuh"
#include "cuda/matmul/gemm_wgmma.cuh"
#include "cuda/matmul/gemv.cuh"
#include "cuda/tile/gemm_tile.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// machine code: FFMA
template <class T>
__global__ void __launch_bounds__(kGemmThreads) gemm_kernel(const GemmParams p) {
  const int64_t tiles = tile_count(p.m, p.n), index = blockIdx.x / tiles;
  const T* a_data = static_cast<const T*>(p.a) + batch_offset(p, p.a_batch, index);
  const T* b_data = static_cast<const T*>(p.b) + batch_offset(p, p.b_batch, index);
  const auto a = [&](int64_t row, int64_t k) { return to_float(a_data[row * p.a_row + k * p.a_col]); };
  const auto b = [&](int64_t row, int64_t k) { return to_float(b_data[row * p.b_row + k * p.b_col]); };
  const auto store = [&](int64_t row, int64_t col, float value) { store_element<T>(p, index, row, col, value); };
  gemm_tile(tile_origin(blockIdx.x % tiles, p.n), p.m, p.n, p.k, a, p.a_col == 1, b, p.b_col == 1, store);
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void gemm_simple(const GemmParams& params, Stream stream) {
  const int64_t tiles = params.matrices() * tile_count(params.m, params.n);
  if (tiles == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    const LaunchConfig config{dim3(static_cast<unsigned>(tiles)), dim3(kGemmThreads), stream};
    launch("gemm", gemm_kernel<decltype(tag)>, config, params);
  });
}

WgmmaConfig config_of(const GemmPlan& plan) {
  WgmmaConfig config{plan.tile_m, plan.tile_n};
  config.pingpong = plan.pingpong != 0;
  config.swapped = plan.swapped != 0;
  config.cluster = plan.cluster;
  config.splits = plan.splits;
  return config;
}

}  // namespace

void gemm(const GemmParams& params, const GemmPlan& plan, float* partials, Stream stream) {
  switch (plan.kernel) {
    case GemmKernel::kSimple: return gemm_simple(params, stream);
    case GemmKernel::kGemv: return gemv(params, plan.splits, partials, stream);
    case GemmKernel::kMma: return gemm_mma(params, plan, partials, stream);
    case GemmKernel::kTf32: return gemm_tf32(params, plan.splits, partials, stream);
    case GemmKernel::kWgmma: return gemm_wgmma(params, config_of(plan), partials, stream);
    case GemmKernel::kDepthwise: return;  // No product.
  }
}

}  // namespace warpwright::cuda
