// The second stage of every two-stage sum: rows of partial sums, added in order.

#pragma once

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/reduction.cuh"

namespace warpwright::cuda {

struct PartialsParams {
  const float* partials;  // (count, cols)
  void* output;           // (cols)
  int64_t count, cols;
};

// A block takes a column for each lane; its warps take parts of the rows in turn, as many columns are few threads.
inline constexpr int kPartialsWarps = 8;
// Rows that are added up before they join the total: closer than one after the other, and just as fixed.
inline constexpr int64_t kPartialsStep = 16;

// machine code: plain
template <class T>
__global__ void __launch_bounds__(kPartialsWarps* kWarpSize) sum_partials_kernel(const PartialsParams p) {
  __shared__ float totals[kPartialsWarps][kWarpSize];
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane;
  float total = 0.0f;
  for (int64_t first = warp * kPartialsStep; first < p.count; first += kPartialsWarps * kPartialsStep) {
    float part = 0.0f;
    const int64_t last = first + kPartialsStep < p.count ? first + kPartialsStep : p.count;
    for (int64_t i = first; i < last && col < p.cols; ++i) part += p.partials[i * p.cols + col];
    total += part;
  }
  totals[warp][lane] = total;
  __syncthreads();
  if (warp != 0 || col >= p.cols) return;
  for (int w = 1; w < kPartialsWarps; ++w) total += totals[w][lane];
  static_cast<T*>(p.output)[col] = from_float<T>(total);
}

// output[c] = the sum of partials[0..count)[c].
template <class T>
void sum_partials(const void* partials, void* output, int64_t count, int64_t cols, Stream stream) {
  if (cols == 0) return;
  const PartialsParams params{static_cast<const float*>(partials), output, count, cols};
  const auto grid = static_cast<unsigned>((cols + kWarpSize - 1) / kWarpSize);
  launch("sum_partials", sum_partials_kernel<T>, {dim3(grid), dim3(kPartialsWarps * kWarpSize), stream}, params);
}

}  // namespace warpwright::cuda
