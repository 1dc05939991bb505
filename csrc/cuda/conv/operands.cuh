// A convolution's operands as matrices of 16-bit elements, gathered into the shared-memory tiles of
// tile/mma_operand.cuh.
//
// Two ways: by vectors, where eight channels lie together and cp.async moves them; and element by element through
// registers, for any strides and any number of channels. Inner dimensions are flat, (tap, channel) or pixels, so a tile
// has no holes where a filter has 3 channels; what a thread needs to find its elements it keeps and moves on by
// additions.

#pragma once

#include "cuda/conv/geometry.cuh"
#include "cuda/tile/mma_operand.cuh"

namespace warpwright::cuda {

// A position in a filter's (tap, channel), counted without divisions.
struct TapWalk {
  int channel = 0, tap[kConvDims] = {};

  __device__ __forceinline__ void advance(int count, int channels, const int (&taps)[kConvDims]) {
    channel += count;
    while (channel >= channels && tap[0] < taps[0]) {
      channel -= channels;
      if (++tap[2] < taps[2]) continue;
      tap[2] = 0;
      if (++tap[1] < taps[1]) continue;
      tap[1] = 0;
      ++tap[0];
    }
  }
  __device__ __forceinline__ bool inside(const int (&taps)[kConvDims]) const { return tap[0] < taps[0]; }
};

// What the rows of pixels read: position origin + tap * step of a tensor, nothing outside of it.
struct PixelSource {
  const uint16_t* data;  // of the group's first channel
  int64_t image_stride, channel_stride, stride[kConvDims];
  int size[kConvDims], step[kConvDims];
};
// One row of pixels.
struct PixelRow {
  int64_t base;  // offset of the image's first element of the channel
  int origin[kConvDims];
  bool there;
};

// The element that a row meets through a tap, or null outside the tensor.
__device__ __forceinline__ const uint16_t* pixel_at(const PixelSource& source, const PixelRow& row, const TapWalk& at) {
  int64_t offset = row.base + at.channel * source.channel_stride;
  bool inside = row.there;
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    const int i = row.origin[d] + at.tap[d] * source.step[d];
    inside = inside && i >= 0 && i < source.size[d];
    offset += i * source.stride[d];
  }
  return inside ? source.data + offset : nullptr;
}

// What the rows of filters read. A row is a filter, or for the gradient of the input a channel.
struct FilterSource {
  const uint16_t* data;  // of the group's first filter and channel, at the first tap
  int64_t row_stride, channel_stride, tap_stride[kConvDims];
  int rows;
};
__device__ __forceinline__ const uint16_t* filter_at(const FilterSource& source, int64_t row, const TapWalk& at) {
  int64_t offset = row * source.row_stride + at.channel * source.channel_stride;
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) offset += at.tap[d] * source.tap_stride[d];
  return source.data + offset;
}

// Whether channels lie together, of each group in whole chunks that start at multiples of 16 bytes.
inline bool in_chunks(const ConvTensor& tensor, int64_t channels) {
  if (tensor.stride[1] != 1 || channels % kChunk != 0) return false;
  if (reinterpret_cast<uintptr_t>(tensor.data) % ptx::kCopyBytes != 0) return false;
  for (int d = 0; d < 2 + kConvDims; ++d) {
    if (d != 1 && tensor.stride[d] % kChunk != 0) return false;
  }
  return true;
}

// ---- how threads share a tile ----

// Whole chunks of 16 bytes along K: neighbouring threads take neighbouring chunks of a row.
template <int kRows, int kThreads>
struct VectorShare {
  static constexpr int kAcross = kTileK / kChunk, kRowsAtOnce = kThreads / kAcross, kCount = kRows / kRowsAtOnce;
  static_assert(kRows % kRowsAtOnce == 0, "every thread copies as much");
  static __device__ __forceinline__ int row(int i) { return static_cast<int>(threadIdx.x) / kAcross + i * kRowsAtOnce; }
  static __device__ __forceinline__ int k() { return static_cast<int>(threadIdx.x) % kAcross * kChunk; }
};

// Chunks along the rows, for a tile whose rows lie together: a thread has the same rows at each of its steps of K.
template <int kRows, int kThreads>
struct AcrossShare {
  static constexpr int kWidth = kRows / kChunk, kStep = kThreads / kWidth, kCount = kTileK / kStep;
  static_assert(kTileK % kStep == 0, "every thread copies as much");
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) % kWidth * kChunk; }
  static __device__ __forceinline__ int k(int i) { return static_cast<int>(threadIdx.x) / kWidth + i * kStep; }
};

// Runs of elements along K of one row; neighbouring threads have neighbouring rows.
template <int kRows, int kThreads>
struct RunShare {
  static constexpr int kLength = kTileK * kRows / kThreads;
  static_assert(kThreads % kRows == 0 && kLength % kChunk == 0, "a run is whole chunks");
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) % kRows; }
  static __device__ __forceinline__ int k() { return static_cast<int>(threadIdx.x) / kRows * kLength; }
};

// Writes a run of a tile along K: element(), called once for each, gives its bits and moves on.
template <int kRows, int kLength, class Element>
__device__ __forceinline__ void write_run(unsigned char* tile, int row, int k, const Element& element) {
#pragma unroll
  for (int first = 0; first < kLength; first += kChunk) {
    uint32_t words[kChunk / 2];
#pragma unroll
    for (int e = 0; e < kChunk / 2; ++e) {
      const uint32_t low = element();
      words[e] = low | static_cast<uint32_t>(element()) << 16;
    }
    *reinterpret_cast<uint4*>(tile + chunk_offset<true, kRows>(row, k + first)) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
}

__device__ __forceinline__ uint32_t bits_or_zero(const uint16_t* element) { return element == nullptr ? 0 : *element; }

// Starts copying a chunk, zeros in place of null.
__device__ __forceinline__ void start_chunk(unsigned char* to, const uint16_t* from, const uint16_t* any) {
  ptx::cp_async(to, from == nullptr ? any : from, from == nullptr ? 0 : ptx::kCopyBytes);
}

}  // namespace warpwright::cuda
