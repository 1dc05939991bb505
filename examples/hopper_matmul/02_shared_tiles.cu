// Step 2: the block's threads share what they load. Any sizes.

#include "matmul.h"

namespace warpwright::examples {
namespace {

constexpr int kTile = 32;
constexpr int kPadded = kTile + 1;  // The elements of a column then lie in different banks.

// machine code: 32 x FFMA, 2 x LDG.U16, STS, LDS
__global__ void __launch_bounds__(kTile* kTile) shared_tiles_kernel(const MatmulParams p) {
  __shared__ float a_tile[kTile][kPadded], b_tile[kTile][kPadded];
  const auto x = threadIdx.x, y = threadIdx.y;
  const int64_t row = int64_t{blockIdx.y} * kTile + y, col = int64_t{blockIdx.x} * kTile + x;
  const int64_t b_row = int64_t{blockIdx.x} * kTile + y;  // Of B, of which this thread loads element x.
  float sum = 0.0f;
  for (int64_t k0 = 0; k0 < p.k; k0 += kTile) {
    a_tile[y][x] = row < p.m && k0 + x < p.k ? to_float(p.a[row * p.k + k0 + x]) : 0.0f;
    b_tile[y][x] = b_row < p.n && k0 + x < p.k ? to_float(p.b[b_row * p.k + k0 + x]) : 0.0f;
    __syncthreads();  // The tiles are there.
#pragma unroll
    for (int k = 0; k < kTile; ++k) sum += a_tile[y][k] * b_tile[x][k];
    __syncthreads();  // Everybody is done with them.
  }
  if (row < p.m && col < p.n) p.c[row * p.n + col] = from_float<bf16>(sum);
}

void shared_tiles(const MatmulParams& p, Stream stream) {
  launch("02_shared_tiles", shared_tiles_kernel, {grid_of<kTile, kTile>(p), dim3(kTile, kTile), stream}, p);
}

}  // namespace
}  // namespace warpwright::examples

WARPWRIGHT_STEP(matmul_02_shared_tiles, shared_tiles)
