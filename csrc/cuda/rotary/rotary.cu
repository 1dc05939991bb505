// Rotary embedding (Su et al., RoFormer, 2021): one block a position, which looks up or computes its cosines and sines
// once, and keeps them in shared memory for every head of the query and the key.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/pack.cuh"
#include "kernels/rotary.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 128;

// The cosine and the sine of an angle in turns of 2^64: see kernels/rotary.h.
__device__ __forceinline__ void cos_and_sin(uint64_t angle, float& cosine, float& sine) {
  const uint64_t rounded = angle + kEighthTurn, quarter = rounded >> kQuarterShift;
  const auto rest = static_cast<int64_t>(angle - (quarter << kQuarterShift));
  const float r = static_cast<float>(rest) * kTurnScale;
  const float x = fmaf(r, kTwoPiHigh, r * kTwoPiLow), z = x * x;
  const float s = x + x * z * (kSin0 + z * (kSin1 + z * (kSin2 + z * kSin3)));
  const float c = 1.0f - 0.5f * z + z * z * (kCos0 + z * (kCos1 + z * kCos2));
  const bool swapped = quarter & 1u;
  const float a = swapped ? s : c, b = swapped ? c : s;
  cosine = (quarter + 1) & 2u ? -a : a;
  sine = quarter & 2u ? -b : b;
}

// Fills cos and sin, (rotary_dim / 2) each, for place `s` of sequence `b`. A position that the table lacks gives NaN
// and nothing is read through it: the host cannot look at the positions without waiting for the GPU.
template <class T>
__device__ __forceinline__ void fill_angles(const RotaryParams& p, int64_t b, int64_t s, float* cos, float* sin) {
  const int64_t position = p.positions == nullptr ? s : p.positions[b * p.position_batch + s * p.position_at];
  const bool known = p.cos == nullptr || (position >= 0 && position < p.table_rows);
  for (int64_t i = threadIdx.x; i < p.rotary_dim / 2; i += kThreads) {
    float cosine = NAN, sine = NAN;
    if (p.cos == nullptr) {
      cos_and_sin(static_cast<uint64_t>(position) * rotary_frequency(p.base, i, p.rotary_dim), cosine, sine);
    } else if (known) {
      const int64_t at = b * p.table_batch + position * p.table_row + i;
      const bool single = p.table_dtype == DType::kFloat32;
      cosine = single ? static_cast<const float*>(p.cos)[at] : to_float(static_cast<const T*>(p.cos)[at]);
      sine = single ? static_cast<const float*>(p.sin)[at] : to_float(static_cast<const T*>(p.sin)[at]);
    }
    cos[i] = cosine;
    sin[i] = p.inverse ? -sine : sine;
  }
}

// Threads in groups of a power of two: a group takes every kThreads / size-th head, a thread every size-th pack of it.
struct Group {
  int first_head, heads, first_pack, packs;
};

__device__ __forceinline__ Group group_of_thread(int64_t packs) {
  int size = 1;
  while (size < packs && size < kThreads) size *= 2;
  const auto thread = static_cast<int>(threadIdx.x);
  return {thread / size, kThreads / size, thread % size, size};
}

template <class T, int kCount>
__device__ __forceinline__ Pack<T, kCount> load_pack(const T* from, int64_t at, int64_t step) {
  if constexpr (kCount == 1) return {{from[at * step]}};
  return *reinterpret_cast<const Pack<T, kCount>*>(from + at);
}

template <class T, int kCount>
__device__ __forceinline__ void rotate_halves(const T* x, int64_t step, const float* cos, const float* sin,
                                              int64_t pairs, int64_t at, T* y) {
  const auto u = load_pack<T, kCount>(x, at, step), v = load_pack<T, kCount>(x, at + pairs, step);
  Pack<T, kCount> first, second;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float a = to_float(u.values[i]), b = to_float(v.values[i]), c = cos[at + i], s = sin[at + i];
    first.values[i] = from_float<T>(a * c - b * s);
    second.values[i] = from_float<T>(b * c + a * s);
  }
  store_whole(y + at, first);
  store_whole(y + at + pairs, second);
}

// Two packs of neighbours, 2 * kCount elements from 2 * at on: as many pairs as of halves.
template <class T, int kCount>
__device__ __forceinline__ void rotate_neighbours(const T* x, int64_t step, const float* cos, const float* sin,
                                                  int64_t at, T* y) {
  T values[2 * kCount];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto pack = load_pack<T, kCount>(x, 2 * at + half * kCount, step);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[half * kCount + i] = pack.values[i];
  }
  Pack<T, kCount> turned[2];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float a = to_float(values[2 * i]), b = to_float(values[2 * i + 1]), c = cos[at + i], s = sin[at + i];
    turned[2 * i / kCount].values[2 * i % kCount] = from_float<T>(a * c - b * s);
    turned[(2 * i + 1) / kCount].values[(2 * i + 1) % kCount] = from_float<T>(b * c + a * s);
  }
  store_whole(y + 2 * at, turned[0]);
  store_whole(y + 2 * at + kCount, turned[1]);
}

template <class T, int kCount>
__device__ __forceinline__ void rotate_heads(const RotaryParams& p, const RotaryTensor& tensor, int64_t b, int64_t s,
                                             const float* cos, const float* sin) {
  const T* input = static_cast<const T*>(tensor.input) + b * tensor.stride[0] + s * tensor.stride[1];
  T* output = static_cast<T*>(tensor.output) + (b * p.sequence + s) * tensor.heads * p.head_dim;
  const int64_t pairs = p.rotary_dim / 2, step = tensor.stride[3];
  const Group turned = group_of_thread(pairs / kCount);
  for (int64_t head = turned.first_head; head < tensor.heads; head += turned.heads) {
    const T* x = input + head * tensor.stride[2];
    T* y = output + head * p.head_dim;
    for (int64_t at = turned.first_pack * kCount; at < pairs; at += turned.packs * kCount) {
      if (p.interleaved) {
        rotate_neighbours<T, kCount>(x, step, cos, sin, at, y);
      } else {
        rotate_halves<T, kCount>(x, step, cos, sin, pairs, at, y);
      }
    }
  }
  if (p.rotary_dim == p.head_dim) return;
  const Group copied = group_of_thread((p.head_dim - p.rotary_dim) / kCount);
  for (int64_t head = copied.first_head; head < tensor.heads; head += copied.heads) {
    const T* x = input + head * tensor.stride[2];
    for (int64_t at = p.rotary_dim + copied.first_pack * kCount; at < p.head_dim; at += copied.packs * kCount) {
      store_whole(output + head * p.head_dim + at, load_pack<T, kCount>(x, at, step));
    }
  }
}

// machine code: 1>: plain; else: 2 x LDG.128, 2 x STG.128
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) rotary_kernel(const RotaryParams p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  float* cos = reinterpret_cast<float*>(shared);  // (rotary_dim / 2) float32, then as many sines
  float* sin = cos + p.rotary_dim / 2;
  const int64_t b = blockIdx.x / p.sequence, s = blockIdx.x % p.sequence;
  fill_angles<T>(p, b, s, cos, sin);
  __syncthreads();
  rotate_heads<T, kCount>(p, p.first, b, s, cos, sin);
  rotate_heads<T, kCount>(p, p.second, b, s, cos, sin);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

template <class T>
bool fits_packs(const RotaryTensor& tensor) {
  if (tensor.heads == 0) return true;
  bool fits = tensor.stride[3] == 1 && reinterpret_cast<uintptr_t>(tensor.input) % kPackBytes == 0;
  for (int d = 0; d < 3; ++d) fits = fits && tensor.stride[d] % kPackSize<T> == 0;
  return fits;
}

}  // namespace

void rotary(const RotaryParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    // Packs of both halves start at multiples of a pack, and so do the heads of the output.
    const bool packs = params.rotary_dim % (2 * kPackSize<T>) == 0 && params.head_dim % kPackSize<T> == 0 &&
                       fits_packs<T>(params.first) && fits_packs<T>(params.second);
    LaunchConfig config{dim3(static_cast<unsigned>(params.batch * params.sequence)), dim3(kThreads), stream};
    config.shared_bytes = static_cast<int>(params.rotary_dim * static_cast<int64_t>(sizeof(float)));
    launch("rotary", packs ? rotary_kernel<T, kPackSize<T>> : rotary_kernel<T, 1>, config, params);
  });
}

}  // namespace warpwright::cuda
