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
// Rows that are added up before they join the total: closer than one after the other, and just as fixed.
inline constexpr int64_t kPartialsStep = 16;

// machine code: plain
template <class T>
__global__ void __launch_bounds__(kPartialsThreads) sum_partials_kernel(const PartialsParams p) {
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kPartialsThreads + threadIdx.x;
  if (col >= p.cols) return;
  float total = 0.0f;
  for (int64_t first = 0; first < p.count; first += kPartialsStep) {
    float part = 0.0f;
    const int64_t last = first + kPartialsStep < p.count ? first + kPartialsStep : p.count;
    for (int64_t i = first; i < last; ++i) part += p.partials[i * p.cols + col];
    total += part;
  }
  static_cast<T*>(p.output)[col] = from_float<T>(total);
}

// output[c] = the sum of partials[0..count)[c].
template <class T>
void sum_partials(const void* partials, void* output, int64_t count, int64_t cols, Stream stream) {
  if (cols == 0) return;
  const PartialsParams params{static_cast<const float*>(partials), output, count, cols};
  const auto grid = static_cast<unsigned>((cols + kPartialsThreads - 1) / kPartialsThreads);
  launch("sum_partials", sum_partials_kernel<T>, {dim3(grid), dim3(kPartialsThreads), stream}, params);
}

}  // namespace warpwright::cuda
