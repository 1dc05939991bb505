// Two products of one input and the gate between them on the tensor cores (sm_80 and later). A block computes 128 rows
// of 64 columns of both: the second operand's tile holds 64 rows of the gate's weight, then 64 of what it gates, so
// that the input's tile is loaded once for both, and both sums of an element are in shared memory together at the end.

#include "cuda/gated/epilogue.cuh"
#include "cuda/gated/gated_mma.cuh"
#include "cuda/launch.h"
#include "cuda/tile/mma_tile.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

using Tile = LargeMmaTile;
constexpr int kThreads = Tile::kThreads, kColumns = Tile::kN / 2;

// machine code: HMMA.16816.F32, LDSM.4, LDGSTS.128
template <class T, bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(kThreads) gated_mma_kernel(const GatedParams p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const MatrixTile tile = banded_tile<Tile::kM, kColumns>(blockIdx.x, p.m, p.n);
  const auto weight = [&](const void* data, int64_t row, int64_t col) {
    return MmaOperand{static_cast<const uint16_t*>(data), kBAlongK ? row : col, p.n, p.k};
  };
  const MmaOperand input{static_cast<const uint16_t*>(p.input), kAAlongK ? p.input_row : p.input_col, p.m, p.k};
  const MmaOperand gate = weight(p.gate_weight, p.gate_row, p.gate_col), up = weight(p.up_weight, p.up_row, p.up_col);
  const auto start = [&](unsigned char* a_tile, unsigned char* b_tile, int64_t step) {
    start_tile<kAAlongK, kThreads, Tile::kM>(a_tile, input, tile.m0, step * kTileK);
    start_tile<kBAlongK, kThreads, kColumns, Tile::kN>(b_tile, gate, tile.n0, step * kTileK);
    start_tile<kBAlongK, kThreads, kColumns, Tile::kN>(b_tile, up, tile.n0, step * kTileK, kColumns);
  };
  const float* const staged = mma_sums<T, Tile, kAAlongK, kBAlongK>(shared, 0, mma_steps(p.k), start);
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kM * kColumns; i += kThreads) {
    const int row = i / kColumns, col = i % kColumns;
    if (tile.m0 + row < p.m && tile.n0 + col < p.n) {
      const float* const both = staged + row * Tile::kStagedColumns + col;
      store_gated<T>(p, tile.m0 + row, tile.n0 + col, both[0], both[kColumns]);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

bool takes(const void* data, int64_t row, int64_t col) {
  const int64_t ld = col == 1 ? row : col;
  return (row == 1 || col == 1) && ld % kChunk == 0 && reinterpret_cast<uintptr_t>(data) % ptx::kCopyBytes == 0;
}

template <class T>
auto kernel_for(bool a_along_k, bool b_along_k) {
  if (a_along_k) return b_along_k ? gated_mma_kernel<T, true, true> : gated_mma_kernel<T, true, false>;
  return b_along_k ? gated_mma_kernel<T, false, true> : gated_mma_kernel<T, false, false>;
}

}  // namespace

bool gated_mma_takes(const GatedParams& p) {
  const bool half = p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16;
  return half && takes(p.input, p.input_row, p.input_col) && takes(p.gate_weight, p.gate_row, p.gate_col) &&
         takes(p.up_weight, p.up_row, p.up_col) && (p.gate_col == 1) == (p.up_col == 1);
}

void gated_mma(const GatedParams& params, Stream stream) {
  const int64_t tiles = tiles_of<Tile::kM, kColumns>(params.m, params.n);
  if (tiles == 0) return;
  const bool a_along_k = params.input_col == 1, b_along_k = params.gate_col == 1;
  const auto kernel = params.dtype == DType::kFloat16 ? kernel_for<__half>(a_along_k, b_along_k)
                                                      : kernel_for<__nv_bfloat16>(a_along_k, b_along_k);
  launch("gated_mma", kernel, {dim3(static_cast<unsigned>(tiles)), dim3(kThreads), stream, Tile::kSharedBytes}, params);
}

}  // namespace warpwright::cuda
