// Depthwise convolutions: each channel has one filter of its own, so nothing is summed over channels, a tensor core has
// nothing to multiply, and what bounds a kernel is how often it reads an element again.
//
// A thread has a pack of channels and a strip of positions of one column. It slides: an element of the source that is
// read once meets all of the strip through the taps of that column. Strips run along the height in every layout:
// neighbouring threads have neighbouring channels (channels last) or neighbouring columns, and both lie together.
//
// Position m of a strip and tap j of its run meet at element m + j of the source's run. With a stride and a dilation
// that holds where the strip's positions lie `spacing` apart and the run takes one tap of `residues`; the elements then
// lie `window` apart.

#pragma once

#include <initializer_list>
#include <type_traits>
#include <utility>

#include "cuda/conv/geometry.cuh"
#include "cuda/dtype.cuh"
#include "cuda/tile/pack.cuh"

namespace warpwright::cuda {

inline constexpr int kDepthwiseThreads = 256, kLastLanes = 8, kMostLanes = 32;
// Of a multiprocessor. Without a number the compiler spills registers to have more.
inline constexpr int kDepthwiseBlocks = 2;

struct DepthwiseParams {
  ConvParams conv;
  int spacing, residues, window;  // of positions, taps and elements of the source, as above
  int lanes = 1;                  // Threads along the channels.
  // Of the weight's gradient: as WgradParams.
  float *partials = nullptr, *bias_partials = nullptr;
  int splits = 1;
};

// The threads of a block: some along the channels, each with a pack of kPack, the others along units of work.
template <int kPack, bool kLast>
struct DepthwiseLanes {
  int lanes;
  __device__ __forceinline__ explicit DepthwiseLanes(const DepthwiseParams& p) : lanes(kLast ? kLastLanes : p.lanes) {}
  __device__ __forceinline__ int units() const { return kDepthwiseThreads / lanes; }
  __device__ __forceinline__ int channels() const { return lanes * kPack; }
  // Neighbouring threads have neighbouring channels where those lie together, else neighbouring units.
  __device__ __forceinline__ int channel() const {
    const int thread = static_cast<int>(threadIdx.x);
    return (kLast ? thread % lanes : thread / units()) * kPack;
  }
  __device__ __forceinline__ int unit() const {
    const int thread = static_cast<int>(threadIdx.x);
    return kLast ? thread / lanes : thread % units();
  }
};

template <class T, int kPack>
__device__ __forceinline__ void load_floats(const T* from, float (&to)[kPack]) {
  const auto pack = *reinterpret_cast<const Pack<T, kPack>*>(from);
#pragma unroll
  for (int e = 0; e < kPack; ++e) to[e] = to_float(pack.values[e]);
}
template <int kPack>
__device__ __forceinline__ void set_zero(float (&to)[kPack]) {
#pragma unroll
  for (int e = 0; e < kPack; ++e) to[e] = 0.0f;
}

// A strip's sums. Long ones in float32 are added up in parts, as a single chain of many hundred terms would leave the
// error bound; a narrower type's own rounding hides it.
template <class T, int kPack, int kStrip>
struct StripSums {
  static constexpr bool kParts = sizeof(T) == sizeof(float);
  static constexpr int kMostTerms = 64;
  float part[kStrip][kPack] = {}, total[kStrip][kPack] = {};
  int terms = 0;

  // part[m] += x[m + j] * w[j] for j < count. x(i, to) and w(j, to) read packs.
  template <class X, class W>
  __device__ __forceinline__ void slide(int count, const X& x, const W& w) {
    float window[kStrip][kPack];
#pragma unroll
    for (int i = 0; i + 1 < kStrip; ++i) x(i, window[i]);
    for (int first = 0; first < count; first += kStrip) {
#pragma unroll
      for (int j = 0; j < kStrip; ++j) {
        if (first + j >= count) continue;
        x(first + j + kStrip - 1, window[(j + kStrip - 1) % kStrip]);
        float factor[kPack];
        w(first + j, factor);
#pragma unroll
        for (int m = 0; m < kStrip; ++m) {
#pragma unroll
          for (int e = 0; e < kPack; ++e) part[m][e] = fmaf(window[(j + m) % kStrip][e], factor[e], part[m][e]);
        }
      }
    }
    terms += count;
    if (kParts && terms >= kMostTerms) flush();
  }

  // The last thing to be called before get.
  __device__ __forceinline__ void finish() {
    if constexpr (kParts) flush();
  }
  // The sums of position m, which may be known at run time only: registers have no index.
  __device__ __forceinline__ void get(int m, float (&to)[kPack]) const {
    const auto& sums = kParts ? total : part;
    set_zero(to);
#pragma unroll
    for (int other = 0; other < kStrip; ++other) {
#pragma unroll
      for (int e = 0; e < kPack; ++e) to[e] = m == other ? sums[other][e] : to[e];
    }
  }

 private:
  __device__ __forceinline__ void flush() {
    if constexpr (kParts) {
#pragma unroll
      for (int m = 0; m < kStrip; ++m) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          total[m][e] += part[m][e];
          part[m][e] = 0.0f;
        }
      }
      terms = 0;
    }
  }
};

// Strips of a column of `size` positions that lie `spacing` apart in each, and the first position of one.
WARPWRIGHT_HOST_DEVICE int64_t strip_count(int64_t size, int64_t spacing, int length) {
  return (size + spacing * length - 1) / (spacing * length) * spacing;
}
WARPWRIGHT_HOST_DEVICE int64_t strip_first(int64_t strip, int64_t spacing, int length) {
  return strip / spacing * spacing * length + strip % spacing;
}

// ---- on the host ----

inline constexpr int kMostTapsOfHeight = 64;

// What has one dimension runs along it: its strips too.
inline ConvParams strips_along_height(ConvParams p) {
  if (p.kernel[1] != 1 || p.x_size[1] != 1) return p;
  for (int64_t* sizes : {p.x_size, p.y_size, p.kernel, p.stride, p.padding, p.dilation}) std::swap(sizes[1], sizes[2]);
  for (ConvTensor* tensor : {&p.x, &p.w, &p.y, &p.residual}) std::swap(tensor->stride[3], tensor->stride[4]);
  return p;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f with integral_constants, the channels of a pack and whether they lie together, for tensors that are read.
template <class T, class F>
void visit_layout(std::initializer_list<const ConvTensor*> tensors, int64_t channels, const F& f) {
  bool packs = true, last = channels > 1;
  for (const ConvTensor* tensor : tensors) {
    packs = packs && in_vectors(*tensor, channels, kPackSize<T>);
    last = last && tensor->stride[1] == 1;
  }
  if (last && packs) return f(std::integral_constant<int, kPackSize<T>>{}, std::true_type{});
  if (last) return f(std::integral_constant<int, 1>{}, std::true_type{});
  f(std::integral_constant<int, 1>{}, std::false_type{});
}

// Threads along the channels: where those do not lie together, as many as units leave idle.
inline int depthwise_lanes(bool last, int64_t units) {
  if (last) return kLastLanes;
  int lanes = 1;
  while (lanes < kMostLanes && units * 2 * lanes <= kDepthwiseThreads) lanes *= 2;
  return lanes;
}

}  // namespace warpwright::cuda
