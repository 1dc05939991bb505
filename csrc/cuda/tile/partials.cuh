// The second stage of every two-stage sum: rows of partial sums, added in order.

#pragma once

#include "cuda/dtype.cuh"
#include "cuda/launch.h"

namespace warpwright::cuda {

struct PartialsParams {
  const float* partials;  // (count, cols)
  void* output;           // (cols)
  int64_t count, cols;
};

inline constexpr int kPartialsThreads = 256;

template <class T>
__global__ void __launch_bounds__(kPartialsThreads) sum_partials_kernel(const PartialsParams p) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kPartialsThreads + threadIdx.x;
  if (col >= p.cols) return;
  float total = 0.0f;
  for (int64_t i = 0; i < p.count; ++i) total += p.partials[i * p.cols + col];
  static_cast<T*>(p.output)[col] = from_float<T>(total);
}

// output[c] = partials[0][c] + partials[1][c] + ..., in that order.
template <class T>
void sum_partials(const void* partials, void* output, int64_t count, int64_t cols, Stream stream) {
  if (cols == 0) return;
  const PartialsParams params{static_cast<const float*>(partials), output, count, cols};
  const auto grid = static_cast<unsigned>((cols + kPartialsThreads - 1) / kPartialsThreads);
  launch("sum_partials", sum_partials_kernel<T>, {dim3(grid), dim3(kPartialsThreads), stream}, params);
}

}  // namespace warpwright::cuda
