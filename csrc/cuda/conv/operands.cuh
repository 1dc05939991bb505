// A convolution's operands as matrices of 16-bit elements, gathered into the shared-memory tiles of
// tile/mma_operand.cuh.
//
// Two ways: by vectors, where eight channels lie together and cp.async moves them; and element by element through
// registers, for any strides and any number of channels. Inner dimensions are flat, (tap, channel) or pixels, so a tile
// has no holes where a filter has 3 channels; what a thread needs to find its elements it keeps and moves on by
// additions.

#pragma once

#include "cuda/conv/product.cuh"
#include "cuda/tile/mma_operand.cuh"

namespace warpwright::cuda {

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
