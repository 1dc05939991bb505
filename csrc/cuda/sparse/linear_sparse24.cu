// linear on a 2:4 sparse weight for any strides, sizes and alignment: the weight's zeros are multiplied, not read.

#include "cuda/launch.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/sparse/linear_sparse24_mma.cuh"
#include "cuda/sparse/linear_sparse24_wgmma.cuh"
#include "cuda/sparse/sparse24.cuh"
#include "cuda/tile/gemm_tile.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// machine code: FFMA
template <class T>
__global__ void __launch_bounds__(kGemmThreads) linear_sparse24_kernel(const LinearSparse24Params p) {
  const GemmParams& gemm = p.gemm;
  const T* const input = static_cast<const T*>(gemm.a);
  const auto a = [&](int64_t row, int64_t k) { return to_float(input[row * gemm.a_row + k * gemm.a_col]); };
  const auto b = [&](int64_t row, int64_t k) { return to_float(dense_element<T>(p.weight, row, k)); };
  const auto store = [&](int64_t row, int64_t col, float value) { store_element<T>(gemm, 0, row, col, value); };
  const TileOrigin origin = tile_origin(blockIdx.x, gemm.n);
  gemm_tile(origin, gemm.m, gemm.n, gemm.k, a, gemm.a_col == 1, b, p.weight.values_col == 1, store);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void linear_sparse24(const LinearSparse24Params& params, Stream stream) {
  if (linear_sparse24_wgmma_takes(params)) return linear_sparse24_wgmma(params, stream);
  if (linear_sparse24_mma_takes(params)) return linear_sparse24_mma(params, stream);
  const int64_t tiles = tile_count(params.gemm.m, params.gemm.n);
  if (tiles == 0) return;
  visit_float(params.gemm.dtype, [&](auto tag) {
    const LaunchConfig config{dim3(static_cast<unsigned>(tiles)), dim3(kGemmThreads), stream};
    launch("linear_sparse24", linear_sparse24_kernel<decltype(tag)>, config, params);
  });
}

}  // namespace warpwright::cuda
