// The walk of every optimizer over many tensors in one launch: a block takes one chunk of one tensor, a warp kCodeBlock
// elements at a time, a lane eight neighbours of them. The table of tensors is a kernel argument, so a step of a model
// with hundreds of small parameters costs a few launches. What a rule does with an element is the rule's.

#pragma once

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/reduction.cuh"
#include "kernels/optim.h"
#include "kernels/philox.h"

namespace warpwright::cuda {

inline constexpr int kStepThreads = 256;
inline constexpr int kStepWarps = kStepThreads / kWarpSize;
inline constexpr int kLaneElements = static_cast<int>(kCodeBlock) / kWarpSize;
static_assert(kOptimChunk % (kStepWarps * kCodeBlock) == 0, "a chunk is the same number of turns for each warp");

// ---- a lane's elements ----

// The first `count` of eight neighbours, zero in the rest; by 16 bytes at a time where `whole`: all are there, and
// start at a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ void load_lane(const T* from, int count, bool whole, float (&values)[kLaneElements]) {
  if (whole) {
    constexpr int kSize = kPackSize<T> < kLaneElements ? kPackSize<T> : kLaneElements;
#pragma unroll
    for (int i = 0; i < kLaneElements; i += kSize) {
      const auto pack = *reinterpret_cast<const Pack<T, kSize>*>(from + i);
#pragma unroll
      for (int k = 0; k < kSize; ++k) values[i + k] = to_float(pack.values[k]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) values[i] = i < count ? to_float(from[i]) : 0.0f;
  }
}

template <class T>
__device__ __forceinline__ void store_lane(T* to, int count, bool whole, const float (&values)[kLaneElements]) {
  if (whole) {
    constexpr int kSize = kPackSize<T> < kLaneElements ? kPackSize<T> : kLaneElements;
#pragma unroll
    for (int i = 0; i < kLaneElements; i += kSize) {
      Pack<T, kSize> pack;
#pragma unroll
      for (int k = 0; k < kSize; ++k) pack.values[k] = from_float<T>(values[i + k]);
      store_whole(to + i, pack);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) {
      if (i < count) to[i] = from_float<T>(values[i]);
    }
  }
}

// ---- 8-bit moments: kernels/optim.h has the code ----

// The storage type of moments that are 8-bit codes.
struct Code8 {
  uint8_t bits;
};
template <class S>
inline constexpr bool kIsCode = false;
template <>
inline constexpr bool kIsCode<Code8> = true;

// The larger of two magnitudes, or the one that is NaN.
struct Larger {
  static __device__ __forceinline__ float combine(float a, float b) { return b > a || b != b ? b : a; }
};

__device__ __forceinline__ void decode_lane(const uint8_t* codes, float scale, bool is_signed, int count, bool whole,
                                            float (&values)[kLaneElements]) {
  Pack<uint8_t, kLaneElements> pack;
  if (whole) {
    pack = *reinterpret_cast<const Pack<uint8_t, kLaneElements>*>(codes);
  } else {
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) pack.values[i] = i < count ? codes[i] : 0;
  }
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i) {
    const float code = static_cast<float>(pack.values[i]);
    const float root = is_signed ? (code - kZeroCode) / kSignedCodes : code / kUnsignedCodes;
    values[i] = (is_signed ? root * fabsf(root) : (root * root) * (root * root)) * scale;
    if (i >= count) values[i] = 0.0f;
  }
}

// The other way round. A block with an infinity or a NaN is a NaN throughout.
__device__ __forceinline__ void encode_lane(uint8_t* codes, float* scale_at, bool is_signed, int count, bool whole,
                                            const float (&values)[kLaneElements]) {
  float scale = 0.0f;
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i) {
    if (i < count) scale = Larger::combine(scale, fabsf(values[i]));
  }
  scale = warp_reduce<Larger>(scale);
  const bool usable = scale > 0.0f && scale < INFINITY;
  Pack<uint8_t, kLaneElements> pack;
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i) {
    float code = usable ? sqrtf(fabsf(values[i]) / scale) : 0.0f;
    if (is_signed) {
      code = rintf(code * kSignedCodes);
      code = kZeroCode + (values[i] < 0.0f ? -code : code);
    } else {
      code = rintf(sqrtf(code) * kUnsignedCodes);
      if (usable && values[i] > 0.0f) code = fmaxf(code, 1.0f);
    }
    pack.values[i] = static_cast<uint8_t>(code);
  }
  if (whole) {
    *reinterpret_cast<Pack<uint8_t, kLaneElements>*>(codes) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) {
      if (i < count) codes[i] = pack.values[i];
    }
  }
  __syncwarp();  // Every lane has read the scale that is replaced.
  if (threadIdx.x % kWarpSize == 0) *scale_at = scale;
}

// ---- stochastic rounding ----

// Adds the words' upper halves to the half of each float32 that bfloat16 has no room for, and cuts.
__device__ __forceinline__ void round_stochastically(const OptimParams& p, const OptimTensor& t, int64_t first,
                                                     float (&values)[kLaneElements]) {
#pragma unroll
  for (int i = 0; i < kLaneElements; i += kPhiloxWords) {
    const PhiloxBlock block = philox(p.seed, t.index, (first + i) / kPhiloxWords, static_cast<int64_t>(*t.step));
#pragma unroll
    for (int k = 0; k < kPhiloxWords; ++k) {
      const float x = values[i + k];
      const uint32_t moved = (__float_as_uint(x) + (block.words[k] >> 16)) & 0xffff0000u;
      if (x - x == 0.0f) values[i + k] = __uint_as_float(moved);
    }
  }
}

// ---- the walk ----

// What every rule reads of a call.
struct StepScalars {
  double lr, step;
  float grad_scale, grad_multiplier;

  __device__ StepScalars(const OptimParams& p, const OptimTensor& t)
      : lr(p.lr_tensor == nullptr ? p.lr : *p.lr_tensor),
        step(*t.step),
        grad_scale((p.grad_scale == nullptr ? 1.0f : *p.grad_scale) * (p.maximize ? -1.0f : 1.0f)),
        grad_multiplier(p.grad_multiplier == nullptr ? 1.0f : *p.grad_multiplier) {}
};

// Whether all of a tensor's memory starts at multiples of 16 bytes.
__device__ __forceinline__ bool is_aligned(const OptimTensor& t) {
  const auto bits = reinterpret_cast<uintptr_t>(t.param) | reinterpret_cast<uintptr_t>(t.grad) |
                    reinterpret_cast<uintptr_t>(t.moments[0]) | reinterpret_cast<uintptr_t>(t.moments[1]) |
                    reinterpret_cast<uintptr_t>(t.maximum) | reinterpret_cast<uintptr_t>(t.master);
  return bits % kPackBytes == 0;
}

// Calls f(first, count, whole) for each lane's elements of this block's chunk. All lanes of a warp call, with a `count`
// of 0 past the end.
template <class F>
__device__ __forceinline__ void for_each_lane(const OptimParams& p, const OptimTensor& t, int index, const F& f) {
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) - p.first_chunk[index];
  const int64_t left = t.numel - chunk * kOptimChunk;
  const int length = static_cast<int>(left < kOptimChunk ? left : kOptimChunk);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const bool aligned = is_aligned(t);
#pragma unroll 1
  for (int at = warp * static_cast<int>(kCodeBlock); at < length; at += kStepThreads * kLaneElements) {
    const int mine = at + lane * kLaneElements, room = length - mine;
    const int count = room < 0 ? 0 : (room < kLaneElements ? room : kLaneElements);
    f(chunk * kOptimChunk + mine, count, aligned && count == kLaneElements);
  }
}

template <class S>
__device__ __forceinline__ void load_moment(const OptimTensor& t, int k, int64_t first, int count, bool whole,
                                            float (&values)[kLaneElements]) {
  if constexpr (kIsCode<S>) {
    // Lanes past the end have no block of their own.
    const float scale = count > 0 ? t.scales[k][first / kCodeBlock] : 0.0f;
    decode_lane(static_cast<const uint8_t*>(t.moments[k]) + first, scale, k == 0, count, whole, values);
  } else {
    load_lane(static_cast<const S*>(t.moments[k]) + first, count, whole, values);
  }
}

template <class S>
__device__ __forceinline__ void store_moment(const OptimTensor& t, int k, int64_t first, int count, bool whole,
                                             const float (&values)[kLaneElements]) {
  if constexpr (kIsCode<S>) {
    encode_lane(static_cast<uint8_t*>(t.moments[k]) + first, t.scales[k] + first / kCodeBlock, k == 0, count, whole,
                values);
  } else {
    store_lane(static_cast<S*>(t.moments[k]) + first, count, whole, values);
  }
}

// The parameter, or its master where it has one.
template <class P>
__device__ __forceinline__ void load_value(const OptimTensor& t, int64_t first, int count, bool whole,
                                           float (&values)[kLaneElements]) {
  if (sizeof(P) < sizeof(float) && t.master != nullptr) {
    load_lane(t.master + first, count, whole, values);
  } else {
    load_lane(static_cast<const P*>(t.param) + first, count, whole, values);
  }
}

template <class P>
__device__ __forceinline__ void store_value(const OptimParams& p, const OptimTensor& t, int64_t first, int count,
                                            bool whole, float (&values)[kLaneElements]) {
  if (sizeof(P) < sizeof(float)) {
    if (t.master != nullptr) store_lane(t.master + first, count, whole, values);
    if (p.stochastic) round_stochastically(p, t, first, values);
  }
  store_lane(static_cast<P*>(t.param) + first, count, whole, values);
}

template <class P>
__device__ __forceinline__ void load_gradient(const StepScalars& s, const OptimTensor& t, int64_t first, int count,
                                              bool whole, float (&values)[kLaneElements]) {
  load_lane(static_cast<const P*>(t.grad) + first, count, whole, values);
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i) values[i] = values[i] / s.grad_scale * s.grad_multiplier;
}

// Rule: made of OptimParams and StepScalars by one thread, in double where that matters, then read by all. P: the
// parameter's and gradient's storage type; S: that of the moments. The running maximum is no code: it forgets nothing,
// not even what a rounding did to it.
// machine code: 16-byte
template <class Rule, class P, class S>
__global__ void __launch_bounds__(kStepThreads) step_kernel(const OptimParams p) {
  if (p.found_inf != nullptr && *p.found_inf != 0.0f) return;
  const int index = p.tensor_of(static_cast<int>(blockIdx.x));
  const OptimTensor& t = p.tensors[index];
  __shared__ Rule shared_rule;
  const StepScalars scalars(p, t);
  if (threadIdx.x == 0) shared_rule.prepare(p, scalars);
  __syncthreads();
  const Rule rule = shared_rule;
  using Maximum = std::conditional_t<kIsCode<S>, float, S>;
  const bool has_moment = Rule::kMoments == 2 || t.moments[0] != nullptr;
  for_each_lane(p, t, index, [&](int64_t first, int count, bool whole) {
    float x[kLaneElements], g[kLaneElements], m[kLaneElements] = {}, v[kLaneElements] = {};
    float maximum[kLaneElements] = {};
    load_gradient<P>(scalars, t, first, count, whole, g);
    load_value<P>(t, first, count, whole, x);
    if (has_moment) load_moment<S>(t, 0, first, count, whole, m);
    if (Rule::kMoments == 2) load_moment<S>(t, 1, first, count, whole, v);
    if (Rule::kMaximum) load_lane(static_cast<const Maximum*>(t.maximum) + first, count, whole, maximum);
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) rule.update(x[i], g[i], m[i], v[i], maximum[i]);
    if (has_moment) store_moment<S>(t, 0, first, count, whole, m);
    if (Rule::kMoments == 2) store_moment<S>(t, 1, first, count, whole, v);
    if (Rule::kMaximum) store_lane(static_cast<Maximum*>(t.maximum) + first, count, whole, maximum);
    store_value<P>(p, t, first, count, whole, x);
  });
}

// One step by Rule, with the types that the tensors have.
template <class Rule>
void launch_step(const char* name, const OptimParams& params, Stream stream) {
  const auto chunks = static_cast<unsigned>(params.first_chunk[params.count]);
  const LaunchConfig config{dim3(chunks), dim3(kStepThreads), stream};
  visit_float(params.dtype, [&](auto tag) {
    using P = decltype(tag);
    const auto of_moments = params.state_dtype == DType::kUInt8  ? step_kernel<Rule, P, Code8>
                            : params.state_dtype == params.dtype ? step_kernel<Rule, P, P>
                                                                 : step_kernel<Rule, P, float>;
    launch(name, of_moments, config, params);
  });
}

}  // namespace warpwright::cuda
