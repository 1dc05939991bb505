// Step 5: tiles arrive while others are multiplied: cp.async, four stages. k must be a multiple of 8.

#include "cuda/ptx/cp_async.cuh"
#include "warp_tile.cuh"

namespace warpwright::examples {
namespace {

constexpr int kStages = 4;

// Starts copying kTile rows of a (rows, k) matrix from (row0, k0) on, zeros past its edges.
__device__ __forceinline__ void start_tile(uint4 (&tile)[kTile][kPadded], const bf16* matrix, int64_t rows, int64_t k,
                                           int64_t row0, int64_t k0) {
#pragma unroll
  for (int step = 0; step < kTile * kChunks / kThreads; ++step) {
    const int i = step * kThreads + static_cast<int>(threadIdx.x), row = i / kChunks, chunk = i % kChunks;
    const int64_t at_row = row0 + row, at_k = k0 + chunk * kChunk;
    const bool inside = at_row < rows && at_k < k;
    const bf16* const from = matrix + (inside ? at_row * k + at_k : 0);
    ptx::cp_async(&tile[row][chunk], from, inside ? ptx::kCopyBytes : 0);  // Fills up with zeros.
  }
}

// machine code: HMMA.16816.F32.BF16, LDSM.4, LDGSTS.128
__global__ void __launch_bounds__(kThreads) cp_async_kernel(const MatmulParams p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  auto* const stages = reinterpret_cast<Tiles*>(shared);  // (kStages)
  const int64_t m0 = int64_t{blockIdx.y} * kTile, n0 = int64_t{blockIdx.x} * kTile;
  const int64_t steps = ceil_div(p.k, kTileK);
  const auto start_step = [&](int64_t step) {
    Tiles& tiles = stages[step % kStages];
    if (step < steps) {
      start_tile(tiles.a, p.a, p.m, p.k, m0, step * kTileK);
      start_tile(tiles.b, p.b, p.n, p.k, n0, step * kTileK);
    }
    ptx::cp_async_commit();  // Empty past the end: a group for each step keeps the count.
  };
  WarpTile warp_tile;
  for (int64_t step = 0; step < kStages - 1; ++step) start_step(step);
  for (int64_t step = 0; step < steps; ++step) {
    ptx::cp_async_wait<kStages - 2>();  // This thread's part of the step's tiles is there,
    __syncthreads();                    // so is everybody's, and everybody is done with the step before,
    start_step(step + kStages - 1);     // whose place this takes.
    warp_tile.multiply(stages[step % kStages]);
  }
  warp_tile.store(p, m0, n0);
}

void cp_async(const MatmulParams& p, Stream stream) {
  require_whole_chunks(p);
  constexpr int kSharedBytes = kStages * static_cast<int>(sizeof(Tiles));
  launch("05_cp_async", cp_async_kernel, {grid_of<kTile, kTile>(p), dim3(kThreads), stream, kSharedBytes}, p);
}

}  // namespace
}  // namespace warpwright::examples

WARPWRIGHT_STEP(matmul_05_cp_async, cp_async)
