// SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020): silu(gate) * up in one pass, which saves the write and
// the read of silu(gate). The backward pass recomputes the sigmoid instead of reading it. Each thread takes one pack of
// a row; strided or unaligned rows are walked one element a thread.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/pack.cuh"
#include "kernels/activation.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// Where one pack lies: its row, its first column, and how many of its elements the row still has.
struct Place {
  int64_t row, col;
  int count;
};

template <int kCount>
__device__ __forceinline__ Place place_of(int64_t pack, int64_t cols) {
  const int64_t packs_per_row = (cols + kCount - 1) / kCount;
  const int64_t row = pack / packs_per_row, col = (pack - row * packs_per_row) * kCount;
  return {row, col, cols - col < kCount ? static_cast<int>(cols - col) : kCount};
}

template <class T, int kCount>
__device__ __forceinline__ Pack<T, kCount> load_pack(const Rows& rows, int64_t row, int64_t col) {
  const T* p = static_cast<const T*>(rows.data) + rows.offset(row) + col * rows.col_stride;
  return *reinterpret_cast<const Pack<T, kCount>*>(p);
}

template <class T, int kCount>
__device__ __forceinline__ void store_pack(void* output, int64_t at, const Pack<T, kCount>& pack) {
  store_whole(static_cast<T*>(output) + at, pack);
}

template <class T, int kCount>
__device__ __forceinline__ void forward_pack(const SwigluParams& p, int64_t row, int64_t col) {
  const auto gate = load_pack<T, kCount>(p.gate, row, col);
  const auto up = load_pack<T, kCount>(p.up, row, col);
  Pack<T, kCount> output;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float x = to_float(gate.values[i]);
    output.values[i] = from_float<T>(x * sigmoid(x) * to_float(up.values[i]));
  }
  store_pack(p.output, row * p.cols + col, output);
}

// With s = sigmoid(gate): grad_up = grad * gate * s, grad_gate = grad * up * s * (1 + gate * (1 - s)).
template <class T, int kCount>
__device__ __forceinline__ void backward_pack(const SwigluBackwardParams& p, int64_t row, int64_t col) {
  const auto grad = load_pack<T, kCount>(p.grad_output, row, col);
  const auto gate = load_pack<T, kCount>(p.gate, row, col);
  const auto up = load_pack<T, kCount>(p.up, row, col);
  Pack<T, kCount> grad_gate, grad_up;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float dy = to_float(grad.values[i]), x = to_float(gate.values[i]), s = sigmoid(x);
    grad_gate.values[i] = from_float<T>(dy * to_float(up.values[i]) * s * (1.0f + x * (1.0f - s)));
    grad_up.values[i] = from_float<T>(dy * x * s);
  }
  store_pack(p.grad_gate, row * p.cols + col, grad_gate);
  store_pack(p.grad_up, row * p.cols + col, grad_up);
}

// The end of a row goes element by element from memory to memory: a part of a pack would be an array that is indexed at
// run time, which has to lie in local memory.
// machine code: 1>: plain; else: 2 x LDG.128, STG.128
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(const SwigluParams p) {
  const Place place = place_of<kCount>(static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, p.cols);
  if (place.row >= p.rows) return;
  if (place.count == kCount) return forward_pack<T, kCount>(p, place.row, place.col);
  for (int i = 0; i < place.count; ++i) forward_pack<T, 1>(p, place.row, place.col + i);
}

// machine code: 1>: plain; else: 3 x LDG.128, 2 x STG.128
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) swiglu_backward_kernel(const SwigluBackwardParams p) {
  const Place place = place_of<kCount>(static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, p.cols);
  if (place.row >= p.rows) return;
  if (place.count == kCount) return backward_pack<T, kCount>(p, place.row, place.col);
  for (int i = 0; i < place.count; ++i) backward_pack<T, 1>(p, place.row, place.col + i);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

// Outputs are fresh allocations: their rows start at a pack when a row is whole packs, or when there is one row.
template <class T>
bool outputs_fit_packs(int64_t rows, int64_t cols) {
  return rows == 1 || cols % kPackSize<T> == 0;
}

LaunchConfig config_for(int64_t rows, int64_t cols, int count, Stream stream) {
  const int64_t packs = rows * ((cols + count - 1) / count);
  return {dim3(static_cast<unsigned>((packs + kThreads - 1) / kThreads)), dim3(kThreads), stream};
}

}  // namespace

void swiglu(const SwigluParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool packs = outputs_fit_packs<T>(params.rows, params.cols) && rows_fit_packs<T>(params.gate) &&
                       rows_fit_packs<T>(params.up);
    const LaunchConfig config = config_for(params.rows, params.cols, packs ? kPackSize<T> : 1, stream);
    launch("swiglu", packs ? swiglu_kernel<T, kPackSize<T>> : swiglu_kernel<T, 1>, config, params);
  });
}

void swiglu_backward(const SwigluBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool packs = outputs_fit_packs<T>(params.rows, params.cols) && rows_fit_packs<T>(params.grad_output) &&
                       rows_fit_packs<T>(params.gate) && rows_fit_packs<T>(params.up);
    const LaunchConfig config = config_for(params.rows, params.cols, packs ? kPackSize<T> : 1, stream);
    launch("swiglu_backward", packs ? swiglu_backward_kernel<T, kPackSize<T>> : swiglu_backward_kernel<T, 1>, config,
           params);
  });
}

}  // namespace warpwright::cuda
