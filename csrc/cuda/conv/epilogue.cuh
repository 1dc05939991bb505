// What every convolution does with an element of its accumulators: bias, residual and activation, then it is stored.

#pragma once

#include "cuda/conv/geometry.cuh"
#include "cuda/dtype.cuh"
#include "cuda/tile/activation.cuh"

namespace warpwright::cuda {

// At `place` of channel `channel` of `output`: x or y, whichever the kernel writes.
template <class T>
__device__ __forceinline__ void store_element(const ConvParams& p, const ConvTensor& output, const ConvPlace& place,
                                              int64_t channel, float value) {
  if (p.bias != nullptr) value += to_float(static_cast<const T*>(p.bias)[channel]);
  if (p.residual.data != nullptr) {
    const int64_t at =
        place.line * p.residual.stride[0] + channel * p.residual.stride[1] + offset_in(p.residual, place);
    value += to_float(static_cast<const T*>(p.residual.data)[at]);
  }
  const int64_t to = place.line * output.stride[0] + channel * output.stride[1] + offset_in(output, place);
  if (p.preact != nullptr) static_cast<T*>(p.preact)[to] = from_float<T>(value);
  static_cast<T*>(output.data)[to] = from_float<T>(activate(p.activation, value));
}

}  // namespace warpwright::cuda
