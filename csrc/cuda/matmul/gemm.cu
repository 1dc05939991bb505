// Matrix product with a fused epilogue, for any strides, sizes and alignment: bias, residual and activation are applied
// to the accumulators, so the product itself never reaches memory.

#include "cuda/launch.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/matmul/gemm_mma.cuh"
#include "cuda/matmul/gemm_wgmma.cuh"
#include "cuda/tile/gemm_tile.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// machine code: FFMA
template <class T>
__global__ void __launch_bounds__(kGemmThreads) gemm_kernel(const GemmParams p) {
  const T* a_data = static_cast<const T*>(p.a);
  const T* b_data = static_cast<const T*>(p.b);
  const auto a = [&](int64_t row, int64_t k) { return to_float(a_data[row * p.a_row + k * p.a_col]); };
  const auto b = [&](int64_t row, int64_t k) { return to_float(b_data[row * p.b_row + k * p.b_col]); };
  const auto store = [&](int64_t row, int64_t col, float value) { store_element<T>(p, row, col, value); };
  gemm_tile(tile_origin(blockIdx.x, p.n), p.m, p.n, p.k, a, p.a_col == 1, b, p.b_col == 1, store);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void gemm(const GemmParams& params, Stream stream) {
  if (gemm_wgmma_takes(params)) return gemm_wgmma(params, stream);
  if (gemm_mma_takes(params)) return gemm_mma(params, stream);
  const int64_t tiles = tile_count(params.m, params.n);
  if (tiles == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    const LaunchConfig config{dim3(static_cast<unsigned>(tiles)), dim3(kGemmThreads), stream};
    launch("gemm", gemm_kernel<decltype(tag)>, config, params);
  });
}

}  // namespace warpwright::cuda
