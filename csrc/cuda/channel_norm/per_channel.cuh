// Reading and writing what has one value a channel.

#pragma once

#include "cuda/dtype.cuh"
#include "kernels/channel_norm.h"

namespace warpwright::cuda {

template <class T>
__device__ __forceinline__ float channel_value(const PerChannel& values, int64_t channel, float otherwise) {
  if (values.data == nullptr) return otherwise;
  if (values.wide) return static_cast<const float*>(values.data)[channel];
  return to_float(static_cast<const T*>(values.data)[channel]);
}

template <class T>
__device__ __forceinline__ void set_channel_value(const PerChannel& values, int64_t channel, float value) {
  if (values.data == nullptr) return;
  if (values.wide) {
    static_cast<float*>(values.data)[channel] = value;
  } else {
    static_cast<T*>(values.data)[channel] = from_float<T>(value);
  }
}

// Running statistics of a channel, moved towards what was found by `share`.
template <class T>
__device__ __forceinline__ void move_running(const PerChannel& running, const PerChannel& moved, int64_t channel,
                                             double share, float found) {
  if (moved.data == nullptr) return;
  const float old = channel_value<T>(running, channel, 0.0f);
  const float value = static_cast<float>(1.0 - share) * old + static_cast<float>(share) * found;
  set_channel_value<T>(moved, channel, share != 0.0 ? value : old);
}

}  // namespace warpwright::cuda
