// The second step of split-K products, see split_k.cuh.

#include "cuda/launch.h"
#include "cuda/matmul/gemm_wgmma_epilogue.cuh"
#include "cuda/matmul/split_k.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// The first `count` floats from `from` on; `whole`: all of them, and they are aligned.
__device__ __forceinline__ void load_floats(float (&values)[kPack], const float* from, int count, bool whole) {
  if (whole) {
#pragma unroll
    for (int first = 0; first < kPack; first += kPackSize<float>) {
      const auto pack = *reinterpret_cast<const Pack<float, kPackSize<float>>*>(from + first);
#pragma unroll
      for (int e = 0; e < kPackSize<float>; ++e) values[first + e] = pack.values[e];
    }
  } else {
#pragma unroll
    for (int e = 0; e < kPack; ++e) values[e] = e < count ? from[e] : 0.0f;
  }
}

// machine code: 16-byte
__global__ void __launch_bounds__(kThreads) reduce_splits_kernel(const __grid_constant__ GemmWgmmaParams p) {
  const GemmParams& g = p.gemm;
  const int64_t packs = (g.n + kPack - 1) / kPack, pack = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (pack >= g.matrices() * g.m * packs) return;
  const int64_t row = pack / packs;
  const MatrixPlace matrix(g, row / g.m);
  const PackPlace place(g, static_cast<int>(row % g.m), static_cast<int>(pack % packs * kPack));
  const uint4 residual = residual_pack(p, matrix, place);
  const float* partials = p.partials + matrix.output + place.in_output(g);
  float sums[kPack] = {};
  for (unsigned split = 0; split < p.walk.splits; ++split) {
    float part[kPack];
    load_floats(part, partials, place.count, p.packs);
#pragma unroll
    for (int e = 0; e < kPack; ++e) sums[e] += part[e];
    partials += g.matrices() * g.m * g.n;
  }
  finish_pack(p, matrix, place, residual, sums);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void reduce_splits(const GemmParams& params, float* partials, int splits, Stream stream) {
  GemmWgmmaParams p{};
  p.gemm = params;
  p.partials = partials;
  p.walk.splits = static_cast<unsigned>(splits);
  p.packs = results_in_packs(params);
  p.residual_packs = residual_in_packs(params);
  const int64_t packs = params.matrices() * params.m * ((params.n + kPack - 1) / kPack);
  const auto blocks = static_cast<unsigned>((packs + kThreads - 1) / kThreads);
  if (blocks > 0) launch("reduce_splits", reduce_splits_kernel, {dim3(blocks), dim3(kThreads), stream}, p);
}

}  // namespace warpwright::cuda
