// 2:4 sparse weights: pruned, made dense again, and the gradient of that. A block takes a piece of a row.

#include <cmath>

#include "cuda/launch.h"
#include "cuda/sparse/sparse24.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// How many blocks share a row of `items`, one for each of their threads.
WARPWRIGHT_HOST_DEVICE int64_t pieces_of(int64_t items) { return (items + kThreads - 1) / kThreads; }

struct Place {
  int64_t row, item;
};
__device__ __forceinline__ Place place_of(int64_t items) {
  const int64_t pieces = pieces_of(items);
  return {blockIdx.x / pieces, blockIdx.x % pieces * kThreads + threadIdx.x};
}

// NaN counts as an infinity.
__device__ __forceinline__ float magnitude(float x) { return x != x ? INFINITY : fabsf(x); }

// A thread for each byte of the metadata: two groups of four, or one at the end of a row.
// machine code: plain
template <class T>
__global__ void __launch_bounds__(kThreads) prune_24_kernel(const Prune24Params p) {
  const int64_t bytes = (p.k + 7) / 8;
  const auto [row, byte] = place_of(bytes);
  if (byte >= bytes) return;
  const T* const weight = static_cast<const T*>(p.weight) + row * p.weight_row;
  T* const values = static_cast<T*>(p.values) + row * (p.k / 2);
  int metadata = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t group = 2 * byte + half, col = 4 * group;
    if (col >= p.k) break;
    float magnitudes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) magnitudes[i] = magnitude(to_float(weight[(col + i) * p.weight_col]));
    const int places = largest_two(magnitudes);
    values[2 * group] = weight[(col + (places & 3)) * p.weight_col];
    values[2 * group + 1] = weight[(col + (places >> 2)) * p.weight_col];
    metadata |= places << (4 * half);
  }
  p.metadata[row * bytes + byte] = static_cast<uint8_t>(metadata);
}

// A thread for each dense element.
// machine code: plain
template <class T>
__global__ void __launch_bounds__(kThreads) dense_from_sparse24_kernel(const DenseFromSparse24Params p) {
  const auto [row, col] = place_of(p.k);
  if (col >= p.k) return;
  static_cast<T*>(p.dense)[row * p.k + col] = dense_element<T>(p.weight, row, col);
}

// A thread for each kept element.
// machine code: plain
template <class T>
__global__ void __launch_bounds__(kThreads)
    dense_from_sparse24_backward_kernel(const DenseFromSparse24BackwardParams p) {
  const int64_t kept = p.k / 2;
  const auto [row, at] = place_of(kept);
  if (at >= kept) return;
  const int64_t col = at / 2 * 4 + (p.weight.places(row, at / 2) >> (at % 2 * 2) & 3);
  const T* const grad = static_cast<const T*>(p.grad_output);
  static_cast<T*>(p.grad_values)[row * kept + at] = grad[row * p.grad_row + col * p.grad_col];
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

LaunchConfig config_for(int64_t rows, int64_t items, Stream stream) {
  return {dim3(static_cast<unsigned>(rows * pieces_of(items))), dim3(kThreads), stream};
}

}  // namespace

void prune_24(const Prune24Params& params, Stream stream) {
  if (params.n == 0 || params.k == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    launch("prune_24", prune_24_kernel<decltype(tag)>, config_for(params.n, (params.k + 7) / 8, stream), params);
  });
}

void dense_from_sparse24(const DenseFromSparse24Params& params, Stream stream) {
  if (params.n == 0 || params.k == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    const LaunchConfig config = config_for(params.n, params.k, stream);
    launch("dense_from_sparse24", dense_from_sparse24_kernel<decltype(tag)>, config, params);
  });
}

void dense_from_sparse24_backward(const DenseFromSparse24BackwardParams& params, Stream stream) {
  if (params.n == 0 || params.k == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    const LaunchConfig config = config_for(params.n, params.k / 2, stream);
    launch("dense_from_sparse24_backward", dense_from_sparse24_backward_kernel<decltype(tag)>, config, params);
  });
}

}  // namespace warpwright::cuda
