// Grouped products on the tensor cores (sm_80 and later): the tiles of tile/mma_tile.cuh.
//
// The grid has as many blocks as there can be tiles, whatever the groups' ends; a block finds its tile on the device,
// and those that find none end.

#include "cuda/grouped/epilogue.cuh"
#include "cuda/grouped/grouped_mma.cuh"
#include "cuda/launch.h"
#include "cuda/tile/mma_tile.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

using Tile = LargeMmaTile;

// machine code: HMMA.16816.F32, LDSM.4, LDGSTS.128
template <class T, bool kBAlongK>
__global__ void __launch_bounds__(Tile::kThreads) grouped_mma_kernel(const GroupedParams p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const MatrixTile at = banded_tile<1, kTileRows>(blockIdx.x, most_row_tiles<kTileRows>(p.groups), p.n);
  const RowTile tile = find_row_tile<kTileRows>(p.groups, static_cast<int>(at.m0));
  if (tile.group < 0) return;
  if (tile.group == p.groups.count) return clear_tile<T, kTileRows, kTileRows, Tile::kThreads>(p, tile, at.n0);
  const MmaOperand a{static_cast<const uint16_t*>(p.a), p.a_row, tile.end, p.k};
  const MmaOperand b{static_cast<const uint16_t*>(p.b) + tile.group * p.b_group, kBAlongK ? p.b_row : p.b_col, p.n,
                     p.k};
  const auto store = [&](int64_t row, int64_t col, float sum) { store_element<T>(p, tile.group, row, col, sum); };
  mma_tile<T, Tile, true, kBAlongK>(shared, a, tile.row0, b, at.n0, 0, mma_steps(p.k), store);
}

// machine code: HMMA.16816.F32, LDSM.4, LDGSTS.128
template <class T>
__global__ void __launch_bounds__(Tile::kThreads) grouped_weight_grad_mma_kernel(const GroupedWeightGradParams p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const int64_t tiles = tiles_of<kTileRows, kTileRows>(p.m, p.n);
  const auto group = static_cast<int>(blockIdx.x / tiles);
  const MatrixTile tile = banded_tile<kTileRows, kTileRows>(blockIdx.x % tiles, p.m, p.n);
  const RowRange rows = rows_of_group(p.groups, group);
  const int64_t k = rows.end - rows.first;
  const MmaOperand a{static_cast<const uint16_t*>(p.a) + rows.first * p.a_row, p.a_row, p.m, k};
  const MmaOperand b{static_cast<const uint16_t*>(p.b) + rows.first * p.b_row, p.b_row, p.n, k};
  T* const output = static_cast<T*>(p.output) + group * p.m * p.n;
  const auto store = [&](int64_t row, int64_t col, float sum) { output[row * p.n + col] = from_float<T>(sum); };
  mma_tile<T, Tile, false, false>(shared, a, tile.m0, b, tile.n0, 0, mma_steps(k), store);
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

bool is_half(DType dtype) { return dtype == DType::kFloat16 || dtype == DType::kBFloat16; }

// Whether every line of a matrix starts at a multiple of 16 bytes.
bool aligned(const void* data, int64_t line) {
  return line % kChunk == 0 && reinterpret_cast<uintptr_t>(data) % ptx::kCopyBytes == 0;
}

template <class T>
auto kernel_for(bool b_along_k) {
  return b_along_k ? grouped_mma_kernel<T, true> : grouped_mma_kernel<T, false>;
}

}  // namespace

bool grouped_mma_takes(const GroupedParams& p) {
  const bool b_fits = p.b_col == 1 ? aligned(p.b, p.b_row) : p.b_row == 1 && aligned(p.b, p.b_col);
  const bool groups_fit = p.groups.count <= 1 || p.b_group % kChunk == 0;
  return is_half(p.dtype) && p.a_col == 1 && aligned(p.a, p.a_row) && b_fits && groups_fit;
}

void grouped_mma(const GroupedParams& params, Stream stream) {
  const int64_t tiles = tiles_of<1, kTileRows>(most_row_tiles<kTileRows>(params.groups), params.n);
  if (tiles == 0) return;
  const bool b_along_k = params.b_col == 1;
  const auto kernel = params.dtype == DType::kFloat16 ? kernel_for<__half>(b_along_k)  //
                                                      : kernel_for<__nv_bfloat16>(b_along_k);
  const LaunchConfig config{dim3(static_cast<unsigned>(tiles)), dim3(Tile::kThreads), stream, Tile::kSharedBytes};
  launch("grouped_mma", kernel, config, params);
}

bool grouped_weight_grad_mma_takes(const GroupedWeightGradParams& p) {
  return is_half(p.dtype) && p.a_col == 1 && aligned(p.a, p.a_row) && p.b_col == 1 && aligned(p.b, p.b_row);
}

void grouped_weight_grad_mma(const GroupedWeightGradParams& params, Stream stream) {
  const int64_t tiles = params.groups.count * tiles_of<kTileRows, kTileRows>(params.m, params.n);
  if (tiles == 0) return;
  const auto kernel = params.dtype == DType::kFloat16 ? grouped_weight_grad_mma_kernel<__half>
                                                      : grouped_weight_grad_mma_kernel<__nv_bfloat16>;
  const LaunchConfig config{dim3(static_cast<unsigned>(tiles)), dim3(Tile::kThreads), stream, Tile::kSharedBytes};
  launch("grouped_weight_grad_mma", kernel, config, params);
}

}  // namespace warpwright::cuda
