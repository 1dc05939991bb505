// What the kernels of the causal convolutions share: a channel's sequence, and where the values under the taps are kept
// while a warp or a thread walks along it. Widths of 2 to 4 are constants of the kernels, others (kWidth = 0) counted.

#pragma once

#include <type_traits>

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/reduction.cuh"
#include "kernels/causal_conv.h"

namespace warpwright::cuda {

inline constexpr int kConvThreads = 128;
inline constexpr int kConvWarps = kConvThreads / kWarpSize;
inline constexpr int kMaxTaps = static_cast<int>(kMaxConvWidth);

// x[t] of a channel, also before its first input.
template <class T>
__device__ __forceinline__ T sequence_value(const Sequences& input, const Sequences& state, int64_t width, int64_t n,
                                            int64_t c, int64_t t) {
  if (t >= 0) return static_cast<const T*>(input.data)[input.offset(n, c, t)];
  if (state.data == nullptr) return from_float<T>(0.0f);
  return static_cast<const T*>(state.data)[state.offset(n, c, t + width - 1)];
}

template <class T>
__device__ __forceinline__ float bias_of(const void* bias, int64_t c) {
  return bias == nullptr ? 0.0f : to_float(static_cast<const T*>(bias)[c]);
}

template <class T, int kCount>
__device__ __forceinline__ void load_floats(const T* from, float (&to)[kCount]) {
  if constexpr (kCount == 1) {
    to[0] = to_float(*from);
  } else {
    const auto pack = *reinterpret_cast<const Pack<T, kCount>*>(from);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = to_float(pack.values[i]);
  }
}

template <class T, int kCount>
__device__ __forceinline__ void store_floats(T* to, const float (&from)[kCount]) {
  Pack<T, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) pack.values[i] = from_float<T>(from[i]);
#if !defined(WARPWRIGHT_BACKEND_EMULATED)
  // As store_whole does for 16 bytes.
  if constexpr (sizeof(pack) == sizeof(uint2)) {
    *reinterpret_cast<uint2*>(to) = std::bit_cast<uint2>(pack);
    return;
  }
#endif
  store_whole(to, pack);
}

// ---- a warp along one channel ----

// Two tiles of a row in shared memory, where lanes find what their neighbours read. A tile is kCount values of each
// lane; equal places of them lie side by side, so that a warp meets no bank twice.
inline constexpr int kRingColumns = 2 * kWarpSize;
template <int kCount>
struct RowRing {
  static_assert((kCount & (kCount - 1)) == 0, "values are found by shifts");
  static constexpr int kShift = kCount == 8 ? 3 : kCount == 4 ? 2 : 0;
  static constexpr int kTile = kCount * kWarpSize;
  using Rows = float[kCount][kRingColumns];
  Rows& rows;

  // Of the position `q` of the slab, which may be before its first.
  __device__ __forceinline__ float& at(int q) const {
    return rows[q & (kCount - 1)][(q >> kShift) & (kRingColumns - 1)];
  }
};

// Calls body(k, values) for every tap, with the kCount values of a ring that it meets for the positions from q + shift
// on: in the order of the taps, so that the sums have the same bits however a sequence is cut.
template <int kWidth, int kCount, class Body>
__device__ __forceinline__ void for_each_tap(const RowRing<kCount>& ring, int q, int width, const Body& body) {
  if constexpr (kWidth > 0) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      float values[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = ring.at(q + k + i);
      body(k, values);
    }
  } else {
    float values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = ring.at(q + i);
    for (int k = 0; k < width; ++k) {
      body(k, values);
#pragma unroll
      for (int i = 0; i + 1 < kCount; ++i) values[i] = values[i + 1];
      if (k + 1 < width) values[kCount - 1] = ring.at(q + k + kCount);
    }
  }
}

// ---- a thread along kCount neighbouring channels ----

// The last values under the taps: at(k) meets tap k. In registers, or where the width is counted in a column of shared
// memory that is the thread's own.
template <int kWidth, int kCount>
struct Window {
  static constexpr int kSharedFloats = 0;
  float values[kWidth][kCount];

  __device__ __forceinline__ Window(float*, int) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[k][i] = 0.0f;
    }
  }
  __device__ __forceinline__ void push(const float (&next)[kCount]) {
#pragma unroll
    for (int k = 0; k + 1 < kWidth; ++k) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[k][i] = values[k + 1][i];
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[kWidth - 1][i] = next[i];
  }
  __device__ __forceinline__ float at(int k, int i) const { return values[k][i]; }
};

template <>
struct Window<0, 1> {
  static constexpr int kSharedFloats = kMaxTaps * kConvThreads;
  float* column;
  int width, next = 0;

  __device__ __forceinline__ Window(float* shared, int taps) : column(shared + threadIdx.x), width(taps) {
    for (int k = 0; k < width; ++k) column[k * kConvThreads] = 0.0f;
  }
  __device__ __forceinline__ void push(const float (&value)[1]) {
    column[next * kConvThreads] = value[0];
    next = next + 1 == width ? 0 : next + 1;
  }
  __device__ __forceinline__ float at(int k, int) const {
    const int place = next + k;
    return column[(place < width ? place : place - width) * kConvThreads];
  }
};

// Weights of the thread's channels; counted ones are read again, from a cache.
template <class T, int kWidth, int kCount>
struct ChannelTaps {
  float values[kWidth][kCount];

  __device__ __forceinline__ ChannelTaps(const void* weight, int64_t channel, int64_t) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        values[k][i] = to_float(static_cast<const T*>(weight)[(channel + i) * kWidth + k]);
      }
    }
  }
  __device__ __forceinline__ float at(int k, int i) const { return values[k][i]; }
};
template <class T>
struct ChannelTaps<T, 0, 1> {
  const T* weight;

  __device__ __forceinline__ ChannelTaps(const void* weights, int64_t channel, int64_t width)
      : weight(static_cast<const T*>(weights) + channel * width) {}
  __device__ __forceinline__ float at(int k, int) const { return to_float(weight[k]); }
};

// Which channels and positions a thread takes: a block has kConvPacks packs of channels side by side, and walkers that
// take equal parts of a slab.
inline constexpr int kConvPacks = 16;
inline constexpr int kConvWalkers = kConvThreads / kConvPacks;
inline constexpr int kConvWalk = static_cast<int>(kConvLastSlab) / kConvWalkers;

template <int kCount>
struct Walk {
  static constexpr int kChannels = kConvPacks * kCount;
  int64_t slab, n, channel, first, last;  // Positions [first, last); none where the tensor ends before.
  int pack, walker;
  bool active;

  __device__ __forceinline__ explicit Walk(const CausalConvShape& s) {
    const int64_t tiles = (s.channels + kChannels - 1) / kChannels, block = blockIdx.x;
    slab = block / tiles;
    n = slab / s.per_sample();
    pack = static_cast<int>(threadIdx.x) % kConvPacks;
    walker = static_cast<int>(threadIdx.x) / kConvPacks;
    channel = block % tiles * kChannels + pack * kCount;
    first = slab % s.per_sample() * s.slab() + walker * kConvWalk;
    last = first + kConvWalk < s.length ? first + kConvWalk : s.length;
    active = channel < s.channels && first < last;
  }
  static int64_t blocks(const CausalConvShape& s) { return s.slabs() * ((s.channels + kChannels - 1) / kChannels); }
};

// The walk's channels of x[t].
template <class T, int kCount>
__device__ __forceinline__ void load_sequence(const Sequences& input, const Sequences& state, int64_t width,
                                              const Walk<kCount>& walk, int64_t t, float (&to)[kCount]) {
  if (t >= 0) {
    return load_floats<T, kCount>(static_cast<const T*>(input.data) + input.offset(walk.n, walk.channel, t), to);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    to[i] = to_float(sequence_value<T>(input, state, width, walk.n, walk.channel + i, t));
  }
}

// ---- launchers ----

// Calls f with integral_constants: the width that a kernel is made for, else 0, and the elements of its packs. Counted
// widths go with packs of kCounted elements.
template <int kPack, int kCounted, class F>
void visit_conv_kernel(int64_t width, bool packs, const F& f) {
  using Pack = std::integral_constant<int, kPack>;
  if (!packs) return f(std::integral_constant<int, 0>{}, std::integral_constant<int, 1>{});
  if (width == 2) return f(std::integral_constant<int, 2>{}, Pack{});
  if (width == 3) return f(std::integral_constant<int, 3>{}, Pack{});
  if (width == 4) return f(std::integral_constant<int, 4>{}, Pack{});
  f(std::integral_constant<int, 0>{}, std::integral_constant<int, kCounted>{});
}

// Whether packs of `count` elements, `bytes` each, lie aligned along the axis whose neighbours they are. The kernels of
// single elements take any strides.
WARPWRIGHT_HOST_DEVICE bool fits_conv_packs(const Sequences& t, bool channels_last, int64_t count, int64_t bytes) {
  if (t.data == nullptr) return true;
  const int64_t along = channels_last ? t.channel : t.position, across = channels_last ? t.position : t.channel;
  return along == 1 && reinterpret_cast<uintptr_t>(t.data) % bytes == 0 && t.batch % count == 0 && across % count == 0;
}

}  // namespace warpwright::cuda
