// Two products of one input and the gate between them, for any strides, sizes and alignment. A block computes 64 rows
// of 32 columns of both: half of its second operand's tile is the gate's weight, half that of what it gates, and each
// thread holds both sums of its columns. So the input is read once, and no product reaches memory.

#include "cuda/gated/epilogue.cuh"
#include "cuda/gated/gated_mma.cuh"
#include "cuda/gated/gated_wgmma.cuh"
#include "cuda/launch.h"
#include "cuda/tile/gemm_tile.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kColumns = kBlockN / 2, kPairs = kThreadN / 2;
static_assert(kPairs * kGemmThreadsN == kColumns, "a thread's first columns are the gate's");

// machine code: FFMA
template <class T>
__global__ void __launch_bounds__(kGemmThreads) gated_kernel(const GatedParams p) {
  const int64_t tiles_n = (p.n + kColumns - 1) / kColumns;
  // Of an operand that interleaves both weights, kColumns rows at a time.
  const TileOrigin origin = tile_origin(blockIdx.x, tiles_n * kBlockN);
  const int64_t first = origin.n0 / 2;
  const auto* const input = static_cast<const T*>(p.input);
  const auto* const gate = static_cast<const T*>(p.gate_weight);
  const auto* const up = static_cast<const T*>(p.up_weight);
  const auto a = [&](int64_t row, int64_t k) { return to_float(input[row * p.input_row + k * p.input_col]); };
  const auto b = [&](int64_t row, int64_t k) {
    const int64_t within = row - origin.n0, col = first + within % kColumns;
    if (col >= p.n) return 0.0f;
    return to_float(within < kColumns ? gate[col * p.gate_row + k * p.gate_col] : up[col * p.up_row + k * p.up_col]);
  };
  float sums[kThreadM][kThreadN];
  tile_sums(origin, p.m, tiles_n * kBlockN, p.k, a, p.input_col == 1, b, p.gate_col == 1, sums);
#pragma unroll
  for (int i = 0; i < kThreadM; ++i) {
    const int64_t row = origin.m0 + thread_row() + i * kGemmThreadsM;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int64_t col = first + thread_col() + j * kGemmThreadsN;
      if (row < p.m && col < p.n) store_gated<T>(p, row, col, sums[i][j], sums[i][j + kPairs]);
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void gated(const GatedParams& params, Stream stream) {
  if (gated_wgmma_takes(params)) return gated_wgmma(params, stream);
  if (gated_mma_takes(params)) return gated_mma(params, stream);
  const int64_t tiles = tiles_of<kBlockM, kColumns>(params.m, params.n);
  if (tiles == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    const LaunchConfig config{dim3(static_cast<unsigned>(tiles)), dim3(kGemmThreads), stream};
    launch("gated", gated_kernel<decltype(tag)>, config, params);
  });
}

}  // namespace warpwright::cuda
