// Dropout (Srivastava et al., 2014) with an optional residual in one pass. A thread takes a pack of a row, or where
// rows are strided or unaligned the four elements of a block of bits one by one, and makes the bits itself; the
// backward pass is the same kernel on the gradient.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/pack.cuh"
#include "kernels/dropout.h"
#include "kernels/philox.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// Elements of a thread: a pack, or one block of bits.
template <class T, bool kPacks>
inline constexpr int kElements = kPacks ? kPackSize<T> : kPhiloxWords;

template <int kCount>
__device__ __forceinline__ void factors_of(const DropoutParams& p, int64_t seed, int64_t row, int64_t col,
                                           float factors[kCount]) {
  static_assert(kCount % kPhiloxWords == 0, "blocks of bits are not divided among threads");
#pragma unroll
  for (int first = 0; first < kCount; first += kPhiloxWords) {
    const PhiloxBlock block = philox(seed, row, (col + first) / kPhiloxWords, p.offset);
#pragma unroll
    for (int i = 0; i < kPhiloxWords; ++i) {
      factors[first + i] = block.words[i] >= p.threshold ? static_cast<float>(p.scale) : 0.0f;
    }
  }
}

template <class T, int kCount>
__device__ __forceinline__ Pack<T, kCount> load_pack(const Rows& rows, int64_t row, int64_t col) {
  const T* p = static_cast<const T*>(rows.data) + rows.offset(row) + col * rows.col_stride;
  return *reinterpret_cast<const Pack<T, kCount>*>(p);
}

// machine code: true>: 2 x LDG.128, STG.128; else: plain
template <class T, bool kPacks>
__global__ void __launch_bounds__(kThreads) dropout_add_kernel(const DropoutParams p) {
  constexpr int kCount = kElements<T, kPacks>;
  const int64_t per_row = (p.cols + kCount - 1) / kCount;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = index / per_row, col = (index - row * per_row) * kCount;
  if (row >= p.rows) return;
  float factors[kCount];
  factors_of<kCount>(p, *static_cast<const int64_t*>(p.seed), row, col, factors);
  const bool add = p.residual.data != nullptr;
  T* output = static_cast<T*>(p.output) + row * p.cols + col;
  if constexpr (kPacks) {
    auto values = load_pack<T, kCount>(p.input, row, col);
    auto terms = values;
    if (add) terms = load_pack<T, kCount>(p.residual, row, col);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float y = to_float(values.values[i]) * factors[i];
      values.values[i] = from_float<T>(add ? y + to_float(terms.values[i]) : y);
    }
    store_whole(output, values);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (col + i >= p.cols) continue;
      const float y = to_float(load_pack<T, 1>(p.input, row, col + i).values[0]) * factors[i];
      output[i] = from_float<T>(add ? y + to_float(load_pack<T, 1>(p.residual, row, col + i).values[0]) : y);
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void dropout_add(const DropoutParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool packs =
        params.cols % kPackSize<T> == 0 && rows_fit_packs<T>(params.input) && rows_fit_packs<T>(params.residual);
    const int count = packs ? kElements<T, true> : kElements<T, false>;
    const int64_t threads = params.rows * ((params.cols + count - 1) / count);
    const LaunchConfig config{dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)), dim3(kThreads), stream};
    launch("dropout_add", packs ? dropout_add_kernel<T, true> : dropout_add_kernel<T, false>, config, params);
  });
}

}  // namespace warpwright::cuda
