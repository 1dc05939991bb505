// Where the rows and columns of a convolution's matrices lie in its tensors.

#pragma once

#include "cuda/runtime.h"
#include "kernels/conv.h"

namespace warpwright::cuda {

// A row of pixels as image and position, or a column of a filter as channel and tap.
struct ConvPlace {
  int64_t line;
  int64_t position[kConvDims];
};

// Division of 64 bits takes several times as long as of 32, which nearly all places fit in.
template <class Index>
__device__ __forceinline__ ConvPlace divided(Index flat, const int64_t (&sizes)[kConvDims]) {
  ConvPlace place;
#pragma unroll
  for (int d = kConvDims - 1; d >= 0; --d) {
    const Index size = static_cast<Index>(sizes[d]);
    place.position[d] = flat % size;
    flat /= size;
  }
  place.line = flat;
  return place;
}
__device__ __forceinline__ ConvPlace place_at(int64_t flat, const int64_t (&sizes)[kConvDims]) {
  if (flat >> 32 != 0 || (sizes[0] | sizes[1] | sizes[2]) >> 32 != 0) return divided<uint64_t>(flat, sizes);
  return divided<uint32_t>(static_cast<uint32_t>(flat), sizes);
}

// Elements from a channel's first to the one at the place's position.
__device__ __forceinline__ int64_t offset_in(const ConvTensor& tensor, const ConvPlace& place) {
  int64_t offset = 0;
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) offset += place.position[d] * tensor.stride[2 + d];
  return offset;
}

// Whether a tensor can be read in vectors of 16 bytes, `elements` channels each: channels lie together, of
// each group in whole vectors that start at multiples of 16 bytes.
inline bool in_vectors(const ConvTensor& tensor, int64_t channels, int elements) {
  if (tensor.stride[1] != 1 || channels % elements != 0) return false;
  if (reinterpret_cast<uintptr_t>(tensor.data) % 16 != 0) return false;
  for (int d = 0; d < 2 + kConvDims; ++d) {
    if (d != 1 && tensor.stride[d] % elements != 0) return false;
  }
  return true;
}

// The positions of x that lie a stride apart in each dimension, and the taps through which they meet an element of y:
// the same for all of them, so a gradient's sum runs over these alone.
struct ConvPhase {
  int64_t origin[kConvDims], size[kConvDims];                          // positions origin + i * stride
  int64_t first_tap[kConvDims], tap_step[kConvDims], taps[kConvDims];  // taps first_tap + j * tap_step
  int64_t first_y[kConvDims], y_step[kConvDims];  // Position 0 meets first_y through tap 0; a tap on, y_step less.

  // Pixels of the phase in all images.
  __device__ __forceinline__ int64_t pixels(int64_t batch) const { return batch * size[0] * size[1] * size[2]; }
  __device__ __forceinline__ int64_t tap_count() const { return taps[0] * taps[1] * taps[2]; }
};

WARPWRIGHT_HOST_DEVICE int64_t conv_phases(const ConvParams& p) { return p.stride[0] * p.stride[1] * p.stride[2]; }
// The most pixels that a phase has: those of the first one.
WARPWRIGHT_HOST_DEVICE int64_t most_phase_pixels(const ConvParams& p) {
  int64_t pixels = p.batch;
  for (int d = 0; d < kConvDims; ++d) pixels *= (p.x_size[d] + p.stride[d] - 1) / p.stride[d];
  return pixels;
}

// One dimension of a phase.
struct ConvPhaseSide {
  int64_t size, first_tap, tap_step, taps, first_y, y_step;
};

WARPWRIGHT_HOST_DEVICE ConvPhaseSide phase_side(const ConvParams& p, int d, int64_t origin) {
  const int64_t stride = p.stride[d], dilation = p.dilation[d];
  int64_t step = 1;  // Of one tap to the next that falls on the same phase.
  while (step * dilation % stride != 0) ++step;
  int64_t tap = 0;
  while (tap < step && (origin + p.padding[d] - tap * dilation) % stride != 0) ++tap;
  const bool met = tap < step && tap < p.kernel[d];
  ConvPhaseSide side;
  side.size = origin < p.x_size[d] ? (p.x_size[d] - origin + stride - 1) / stride : 0;
  side.first_tap = met ? tap : 0;
  side.tap_step = step;
  side.taps = met ? (p.kernel[d] - tap + step - 1) / step : 0;
  side.first_y = (origin + p.padding[d] - side.first_tap * dilation) / stride;
  side.y_step = step * dilation / stride;
  return side;
}

__device__ __forceinline__ ConvPhase phase_at(const ConvParams& p, int64_t index) {
  ConvPhase phase;
#pragma unroll
  for (int d = kConvDims - 1; d >= 0; --d) {
    phase.origin[d] = index % p.stride[d];
    index /= p.stride[d];
    const ConvPhaseSide side = phase_side(p, d, phase.origin[d]);
    phase.size[d] = side.size;
    phase.first_tap[d] = side.first_tap;
    phase.tap_step[d] = side.tap_step;
    phase.taps[d] = side.taps;
    phase.first_y[d] = side.first_y;
    phase.y_step[d] = side.y_step;
  }
  return phase;
}

}  // namespace warpwright::cuda
