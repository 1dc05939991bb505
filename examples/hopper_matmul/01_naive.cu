// Step 1: one thread for each element of C. Any sizes.

#include "matmul.h"

namespace warpwright::examples {
namespace {

constexpr int kSide = 16;  // Of a block of threads, and of its tile of C.

// machine code: FFMA, LDG.U16
__global__ void __launch_bounds__(kSide* kSide) naive_kernel(const MatmulParams p) {
  const int64_t row = int64_t{blockIdx.y} * kSide + threadIdx.y;
  const int64_t col = int64_t{blockIdx.x} * kSide + threadIdx.x;
  if (row >= p.m || col >= p.n) return;
  float sum = 0.0f;
  for (int64_t k = 0; k < p.k; ++k) sum += to_float(p.a[row * p.k + k]) * to_float(p.b[col * p.k + k]);
  p.c[row * p.n + col] = from_float<bf16>(sum);
}

void naive(const MatmulParams& p, Stream stream) {
  launch("01_naive", naive_kernel, {grid_of<kSide, kSide>(p), dim3(kSide, kSide), stream}, p);
}

}  // namespace
}  // namespace warpwright::examples

WARPWRIGHT_STEP(matmul_01_naive, naive)
