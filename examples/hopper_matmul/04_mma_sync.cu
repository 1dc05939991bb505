// Step 4: the tensor cores multiply: ldmatrix, mma.sync. k must be a multiple of 8, m and n may be anything.

#include "warp_tile.cuh"

namespace warpwright::examples {
namespace {

// kTile rows of a (rows, k) matrix from (row0, k0) on, zeros past its edges, 16 bytes at a time through registers.
__device__ __forceinline__ void load_tile(uint4 (&tile)[kTile][kPadded], const bf16* matrix, int64_t rows, int64_t k,
                                          int64_t row0, int64_t k0) {
#pragma unroll
  for (int step = 0; step < kTile * kChunks / kThreads; ++step) {
    const int i = step * kThreads + static_cast<int>(threadIdx.x), row = i / kChunks, chunk = i % kChunks;
    const int64_t at_row = row0 + row, at_k = k0 + chunk * kChunk;
    const bool inside = at_row < rows && at_k < k;
    tile[row][chunk] = inside ? *reinterpret_cast<const uint4*>(matrix + at_row * k + at_k) : uint4{};
  }
}

// machine code: HMMA.16816.F32.BF16, LDSM.4, LDG.128, STS.128
__global__ void __launch_bounds__(kThreads) mma_sync_kernel(const MatmulParams p) {
  __shared__ Tiles tiles;
  const int64_t m0 = int64_t{blockIdx.y} * kTile, n0 = int64_t{blockIdx.x} * kTile;
  WarpTile warp_tile;
  for (int64_t k0 = 0; k0 < p.k; k0 += kTileK) {
    load_tile(tiles.a, p.a, p.m, p.k, m0, k0);
    load_tile(tiles.b, p.b, p.n, p.k, n0, k0);
    __syncthreads();
    warp_tile.multiply(tiles);
    __syncthreads();
  }
  warp_tile.store(p, m0, n0);
}

void mma_sync(const MatmulParams& p, Stream stream) {
  require_whole_chunks(p);
  launch("04_mma_sync", mma_sync_kernel, {grid_of<kTile, kTile>(p), dim3(kThreads), stream}, p);
}

}  // namespace
}  // namespace warpwright::examples

WARPWRIGHT_STEP(matmul_04_mma_sync, mma_sync)
