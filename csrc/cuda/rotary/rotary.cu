// Rotary embedding (Su et al., RoFormer, 2021): one block a position, so that its row of cosines and sines is read
// once from memory and again from cache for every head.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "kernels/rotary.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 128;

// machine code: plain
template <class T, class Table>
__global__ void __launch_bounds__(kThreads) rotary_kernel(const RotaryParams p) {
  const int64_t position = blockIdx.x % p.sequence, b = blockIdx.x / p.sequence;
  const int64_t pairs = p.rotary_dim / 2, rest = p.head_dim - p.rotary_dim;
  const T* x = static_cast<const T*>(p.input) + b * p.input_stride[0] + position * p.input_stride[1];
  T* y = static_cast<T*>(p.output) + blockIdx.x * p.heads * p.head_dim;
  const int64_t table = b * p.table_batch + position * p.table_row;
  const Table* cos = static_cast<const Table*>(p.cos) + table;
  const Table* sin = static_cast<const Table*>(p.sin) + table;
  const float sign = p.inverse ? -1.0f : 1.0f;

  for (int64_t i = threadIdx.x; i < p.heads * pairs; i += kThreads) {
    const int64_t head = i / pairs, pair = i % pairs;
    const int64_t first = p.interleaved ? 2 * pair : pair, second = p.interleaved ? first + 1 : first + pairs;
    const T* from = x + head * p.input_stride[2];
    const float u = to_float(from[first * p.input_stride[3]]), v = to_float(from[second * p.input_stride[3]]);
    const float c = to_float(cos[pair]), s = to_float(sin[pair]) * sign;
    y[head * p.head_dim + first] = from_float<T>(u * c - v * s);
    y[head * p.head_dim + second] = from_float<T>(v * c + u * s);
  }
  for (int64_t i = threadIdx.x; i < p.heads * rest; i += kThreads) {
    const int64_t head = i / rest, element = p.rotary_dim + i % rest;
    y[head * p.head_dim + element] = x[head * p.input_stride[2] + element * p.input_stride[3]];
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void rotary(const RotaryParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const LaunchConfig config{dim3(static_cast<unsigned>(params.batch * params.sequence)), dim3(kThreads), stream};
    if (params.table_dtype == DType::kFloat32) {
      launch("rotary", rotary_kernel<T, float>, config, params);
    } else {
      launch("rotary", rotary_kernel<T, T>, config, params);
    }
  });
}

}  // namespace warpwright::cuda
