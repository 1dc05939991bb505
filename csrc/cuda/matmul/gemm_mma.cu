// Matrix product on the tensor cores (sm_80 and later): cp.async, ldmatrix, mma.sync.
//
// A block computes one tile of the output, or with split-K a part of its sum: see tile/mma_tile.cuh.
//
// Three tiles: 128 x 128 reads each operand least often; 64 x 64 has four times as many blocks; 16 x 128 is for the few
// rows of a decoding step, where the weight is read once and the tensor cores wait for memory anyway.

#include "cuda/launch.h"
#include "cuda/matmul/gemm_mma.cuh"
#include "cuda/tile/mma_tile.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

using Large = LargeMmaTile;
using Middle = MmaTile<64, 64, 2, 2, 4>;
using Flat = MmaTile<16, 128, 1, 4, 8>;

struct GemmMmaParams {
  GemmParams gemm;
  float* partials;  // Null without splits.
  int splits;
};

// machine code: HMMA.16816.F32, LDSM.4, LDGSTS.128
template <class T, class Tile, bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(Tile::kThreads) gemm_mma_kernel(const GemmMmaParams params) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const GemmParams& p = params.gemm;
  const int64_t tiles = tiles_of<Tile::kM, Tile::kN>(p.m, p.n), matrices = p.matrices();
  const int64_t split = blockIdx.x / (tiles * matrices), index = blockIdx.x / tiles % matrices;
  const MatrixTile tile = banded_tile<Tile::kM, Tile::kN>(blockIdx.x % tiles, p.m, p.n);
  const MmaOperand a{static_cast<const uint16_t*>(p.a) + batch_offset(p, p.a_batch, index),
                     kAAlongK ? p.a_row : p.a_col, p.m, p.k};
  const MmaOperand b{static_cast<const uint16_t*>(p.b) + batch_offset(p, p.b_batch, index),
                     kBAlongK ? p.b_row : p.b_col, p.n, p.k};
  const int64_t steps = mma_steps(p.k);
  const int64_t first = steps * split / params.splits, last = steps * (split + 1) / params.splits;
  const auto store = [&](int64_t row, int64_t col, float sum) {
    if (params.partials != nullptr) {
      params.partials[partial_at(p, split, index, row, col)] = sum;
    } else {
      store_element<T>(p, index, row, col, sum);
    }
  };
  mma_tile<T, Tile, kAAlongK, kBAlongK>(shared, a, tile.m0, b, tile.n0, first, last, store);
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

bool takes(const GemmParams& p, const void* data, const int64_t (&batch)[kMaxBatchDims], int64_t row, int64_t col) {
  const int64_t ld = col == 1 ? row : col;
  for (int d = 0; d < kMaxBatchDims; ++d) {
    if (p.batch[d] > 1 && batch[d] % kChunk != 0) return false;
  }
  return (row == 1 || col == 1) && ld % kChunk == 0 && reinterpret_cast<uintptr_t>(data) % ptx::kCopyBytes == 0;
}

template <class T, class Tile>
void launch_tile(const GemmMmaParams& params, Stream stream) {
  const GemmParams& p = params.gemm;
  const bool a_along_k = p.a_col == 1, b_along_k = p.b_col == 1;
  auto kernel = b_along_k ? gemm_mma_kernel<T, Tile, true, true> : gemm_mma_kernel<T, Tile, true, false>;
  if constexpr (Tile::kM >= 64) {  // A flat tile's A lies along K.
    if (!a_along_k) {
      kernel = b_along_k ? gemm_mma_kernel<T, Tile, false, true> : gemm_mma_kernel<T, Tile, false, false>;
    }
  }
  const int64_t blocks = p.matrices() * tiles_of<Tile::kM, Tile::kN>(p.m, p.n) * params.splits;
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), stream, Tile::kSharedBytes};
  if (blocks > 0) launch("gemm_mma", kernel, config, params);
}

template <class T>
void launch_any(const GemmMmaParams& params, int tile_m, Stream stream) {
  switch (tile_m) {
    case Large::kM: return launch_tile<T, Large>(params, stream);
    case Middle::kM: return launch_tile<T, Middle>(params, stream);
    default: return launch_tile<T, Flat>(params, stream);
  }
}

}  // namespace

bool gemm_mma_takes(const GemmParams& params) {
  const bool half = params.dtype == DType::kFloat16 || params.dtype == DType::kBFloat16;
  return half && takes(params, params.a, params.a_batch, params.a_row, params.a_col) &&
         takes(params, params.b, params.b_batch, params.b_row, params.b_col);
}

void gemm_mma(const GemmParams& params, const GemmPlan& plan, float* partials, Stream stream) {
  const GemmMmaParams p{params, plan.splits > 1 ? partials : nullptr, plan.splits};
  if (params.dtype == DType::kFloat16) {
    launch_any<__half>(p, plan.tile_m, stream);
  } else {
    launch_any<__nv_bfloat16>(p, plan.tile_m, stream);
  }
  if (plan.splits > 1) reduce_splits(params, partials, plan.splits, stream);
}

}  // namespace warpwright::cuda
