// Grouped products for any strides, sizes and alignment, and the gradient of the bias.
//
// The host does not know the groups' ends: the grid has as many blocks as there can be tiles, a block finds its tile on
// the device, and those that find none end.

#include "cuda/grouped/epilogue.cuh"
#include "cuda/grouped/grouped_mma.cuh"
#include "cuda/grouped/grouped_wgmma.cuh"
#include "cuda/launch.h"
#include "cuda/tile/gemm_tile.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// machine code: FFMA
template <class T>
__global__ void __launch_bounds__(kGemmThreads) grouped_kernel(const GroupedParams p) {
  const int64_t tiles_n = (p.n + kBlockN - 1) / kBlockN, n0 = blockIdx.x % tiles_n * kBlockN;
  const RowTile tile = find_row_tile<kBlockM>(p.groups, static_cast<int>(blockIdx.x / tiles_n));
  if (tile.group < 0) return;
  if (tile.group == p.groups.count) return clear_tile<T, kBlockM, kBlockN, kGemmThreads>(p, tile, n0);
  const T* a_data = static_cast<const T*>(p.a);
  const T* b_data = static_cast<const T*>(p.b) + tile.group * p.b_group;
  const auto a = [&](int64_t row, int64_t k) { return to_float(a_data[row * p.a_row + k * p.a_col]); };
  const auto b = [&](int64_t row, int64_t k) { return to_float(b_data[row * p.b_row + k * p.b_col]); };
  const auto store = [&](int64_t row, int64_t col, float sum) { store_element<T>(p, tile.group, row, col, sum); };
  gemm_tile({tile.row0, n0}, tile.end, p.n, p.k, a, p.a_col == 1, b, p.b_col == 1, store);
}

// machine code: FFMA
template <class T>
__global__ void __launch_bounds__(kGemmThreads) grouped_weight_grad_kernel(const GroupedWeightGradParams p) {
  const int64_t tiles = tile_count(p.m, p.n);
  const auto group = static_cast<int>(blockIdx.x / tiles);
  const RowRange rows = rows_of_group(p.groups, group);
  const T* a_data = static_cast<const T*>(p.a) + rows.first * p.a_row;
  const T* b_data = static_cast<const T*>(p.b) + rows.first * p.b_row;
  T* const output = static_cast<T*>(p.output) + group * p.m * p.n;
  const auto a = [&](int64_t col, int64_t row) { return to_float(a_data[row * p.a_row + col * p.a_col]); };
  const auto b = [&](int64_t col, int64_t row) { return to_float(b_data[row * p.b_row + col * p.b_col]); };
  const auto store = [&](int64_t row, int64_t col, float sum) { output[row * p.n + col] = from_float<T>(sum); };
  gemm_tile(tile_origin(blockIdx.x % tiles, p.n), p.m, p.n, rows.end - rows.first, a, p.a_row == 1, b, p.b_row == 1,
            store);
}

// A block adds up kWarpSize columns of a group, a warp every kSumWarps-th row.
constexpr int kSumWarps = 8;
// Rows that a thread adds up before they join its total: closer than one after the other, and just as fixed.
constexpr int kSumStep = 16;

// machine code: plain
template <class T>
__global__ void __launch_bounds__(kSumWarps* kWarpSize) grouped_bias_grad_kernel(const GroupedBiasGradParams p) {
  __shared__ float sums[kSumWarps][kWarpSize];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t blocks = (p.n + kWarpSize - 1) / kWarpSize, col = blockIdx.x % blocks * kWarpSize + lane;
  const auto group = static_cast<int>(blockIdx.x / blocks);
  const RowRange rows = rows_of_group(p.groups, group);
  float total = 0.0f;
  if (col < p.n) {
    const T* const grad = static_cast<const T*>(p.grad) + col * p.grad_col;
    for (int64_t first = rows.first + warp; first < rows.end; first += kSumWarps * kSumStep) {
      const int64_t last = first + kSumWarps * kSumStep < rows.end ? first + kSumWarps * kSumStep : rows.end;
      float part = 0.0f;
      for (int64_t row = first; row < last; row += kSumWarps) part += to_float(grad[row * p.grad_row]);
      total += part;
    }
  }
  sums[warp][lane] = total;
  __syncthreads();
  if (warp != 0 || col >= p.n) return;
  total = 0.0f;
#pragma unroll
  for (int i = 0; i < kSumWarps; ++i) total += sums[i][lane];
  static_cast<T*>(p.output)[group * p.n + col] = from_float<T>(total);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void grouped_matmul(const GroupedParams& params, Stream stream) {
  if (grouped_wgmma_takes(params)) return grouped_wgmma(params, stream);
  if (grouped_mma_takes(params)) return grouped_mma(params, stream);
  const int64_t tiles = most_row_tiles<kBlockM>(params.groups) * ((params.n + kBlockN - 1) / kBlockN);
  if (tiles == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    const LaunchConfig config{dim3(static_cast<unsigned>(tiles)), dim3(kGemmThreads), stream};
    launch("grouped", grouped_kernel<decltype(tag)>, config, params);
  });
}

void grouped_weight_grad(const GroupedWeightGradParams& params, Stream stream) {
  if (grouped_weight_grad_wgmma_takes(params)) return grouped_weight_grad_wgmma(params, stream);
  if (grouped_weight_grad_mma_takes(params)) return grouped_weight_grad_mma(params, stream);
  const int64_t tiles = params.groups.count * tile_count(params.m, params.n);
  if (tiles == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    const LaunchConfig config{dim3(static_cast<unsigned>(tiles)), dim3(kGemmThreads), stream};
    launch("grouped_weight_grad", grouped_weight_grad_kernel<decltype(tag)>, config, params);
  });
}

void grouped_bias_grad(const GroupedBiasGradParams& params, Stream stream) {
  const int64_t blocks = params.groups.count * ((params.n + kWarpSize - 1) / kWarpSize);
  if (blocks == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kSumWarps * kWarpSize), stream};
    launch("grouped_bias_grad", grouped_bias_grad_kernel<decltype(tag)>, config, params);
  });
}

}  // namespace warpwright::cuda
