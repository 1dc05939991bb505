// Reading what has one value a channel.

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

}  // namespace warpwright::cuda
