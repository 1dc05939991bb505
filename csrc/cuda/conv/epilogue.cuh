// What every convolution does with its accumulators: bias, a folded batch norm, residual and activation, then they are
// stored.

#pragma once

#include "cuda/channel_norm/per_channel.cuh"
#include "cuda/conv/geometry.cuh"
#include "cuda/dtype.cuh"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/pack.cuh"

namespace warpwright::cuda {

template <class T, int kCount>
__device__ __forceinline__ void store_values(T* to, int64_t step, const Pack<T, kCount>& values, int count) {
  const bool whole = count == kCount && step == 1 && reinterpret_cast<uintptr_t>(to) % sizeof(values) == 0;
  if (whole) return store_whole(to, values);
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    if (e < count) to[e * step] = values.values[e];
  }
}

// The mean first, so that a large one costs no digits: as batch_norm's kernel.
template <class T>
__device__ __forceinline__ float normalized(const ConvNorm& norm, int64_t channel, float value) {
  const float rstd = 1.0f / sqrtf(channel_value<T>(norm.var, channel, 1.0f) + norm.eps);
  const float scaled = (value - channel_value<T>(norm.mean, channel, 0.0f)) * rstd;
  return scaled * channel_value<T>(norm.weight, channel, 1.0f) + channel_value<T>(norm.bias, channel, 0.0f);
}

// Finishes `count` sums, at most kCount, of neighbouring channels from `channel` on, at `place` of `output`: x or y,
// whichever the kernel writes.
template <class T, int kCount>
__device__ __forceinline__ void store_channels(const ConvParams& p, const ConvTensor& output, const ConvPlace& place,
                                               int64_t channel, const float* sums, int count) {
  const int64_t to = place.line * output.stride[0] + channel * output.stride[1] + offset_in(output, place);
  const ConvTensor& r = p.residual;
  const int64_t from = place.line * r.stride[0] + channel * r.stride[1] + offset_in(r, place);
  Pack<T, kCount> results, preacts;
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    if (e >= count) continue;
    float value = sums[e];
    if (p.bias != nullptr) value += to_float(static_cast<const T*>(p.bias)[channel + e]);
    if (p.norm.mean.data != nullptr) value = normalized<T>(p.norm, channel + e, value);
    if (r.data != nullptr) value += to_float(static_cast<const T*>(r.data)[from + e * r.stride[1]]);
    preacts.values[e] = from_float<T>(value);
    results.values[e] = from_float<T>(activate(p.activation, value));
  }
  if (p.preact != nullptr) store_values(static_cast<T*>(p.preact) + to, output.stride[1], preacts, count);
  store_values(static_cast<T*>(output.data) + to, output.stride[1], results, count);
}

template <class T>
__device__ __forceinline__ void store_element(const ConvParams& p, const ConvTensor& output, const ConvPlace& place,
                                              int64_t channel, float value) {
  store_channels<T, 1>(p, output, place, channel, &value, 1);
}

// Element (filter, column) of the weight's gradient; the filter is counted over all groups.
template <class T>
__device__ __forceinline__ void store_weight(const ConvParams& p, int64_t filter, int64_t column, float value) {
  const ConvPlace tap = place_at(column / p.group_channels(), p.kernel);
  const int64_t channel = column % p.group_channels();
  const int64_t to = filter * p.w.stride[0] + channel * p.w.stride[1] + offset_in(p.w, tap);
  static_cast<T*>(p.w.data)[to] = from_float<T>(value);
}

template <class T>
__device__ __forceinline__ void store_bias_grad(const ConvParams& p, int64_t filter, float value) {
  static_cast<T*>(p.grad_bias)[filter] = from_float<T>(value);
}

}  // namespace warpwright::cuda
