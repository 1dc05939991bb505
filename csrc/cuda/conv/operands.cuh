// A convolution's operands as matrices, gathered into the shared-memory tiles of tile/mma_tile.cuh and tf32_tile.cuh.
//
// Two ways: by vectors, where channels lie together and cp.async moves 16 bytes of them; and element by element, of 8
// and 16 bits through registers, for any strides and any number of channels. Inner dimensions are flat, (tap, channel)
// or pixels, so a tile has no holes where a filter has 3 channels; what a thread needs to find its elements it keeps
// and moves on by additions.

#pragma once

#include "cuda/conv/product.cuh"
#include "cuda/tile/mma_operand.cuh"

namespace warpwright::cuda {

// ---- how threads share a tile ----

// Whole chunks of 16 bytes along K: neighbouring threads take neighbouring chunks of a row.
template <class Tile, int kRows>
struct VectorShare {
  static constexpr int kAcross = Tile::kInner / Tile::kVector, kRowsAtOnce = Tile::kThreads / kAcross;
  static constexpr int kCount = kRows / kRowsAtOnce;
  static_assert(kRows % kRowsAtOnce == 0, "every thread copies as much");
  static __device__ __forceinline__ int row(int i) { return static_cast<int>(threadIdx.x) / kAcross + i * kRowsAtOnce; }
  static __device__ __forceinline__ int k() { return static_cast<int>(threadIdx.x) % kAcross * Tile::kVector; }
};

// Chunks along the rows, for a tile whose rows lie together: a thread has the same rows at each of its steps of K.
template <class Tile, int kRows>
struct AcrossShare {
  static constexpr int kWidth = kRows / Tile::kVector, kStep = Tile::kThreads / kWidth, kCount = Tile::kInner / kStep;
  static_assert(Tile::kInner % kStep == 0, "every thread copies as much");
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) % kWidth * Tile::kVector; }
  static __device__ __forceinline__ int k(int i) { return static_cast<int>(threadIdx.x) / kWidth + i * kStep; }
};

// Runs of elements along K of one row; neighbouring threads have neighbouring rows.
template <class Tile, int kRows>
struct RunShare {
  static constexpr int kLength = Tile::kInner * kRows / Tile::kThreads;
  static_assert(Tile::kThreads % kRows == 0 && kLength % Tile::kVector == 0, "a run is whole chunks");
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) % kRows; }
  static __device__ __forceinline__ int k() { return static_cast<int>(threadIdx.x) / kRows * kLength; }
};

template <class Element>
__device__ __forceinline__ uint32_t bits_or_zero(const Element* element) {
  return element == nullptr ? 0 : *element;
}

// Writes the thread's run of a tile: element(), called once for each, says where it is, null for a zero, and moves on.
template <class Tile, int kRows, class Next>
__device__ __forceinline__ void write_run(unsigned char* tile, const typename Tile::Element* any, const Next& element) {
  using Share = RunShare<Tile, kRows>;
  constexpr int kBytes = sizeof(typename Tile::Element), kInWord = 4 / kBytes;
  if constexpr (kBytes < 4) {  // cp.async takes no less than 4 bytes.
#pragma unroll
    for (int first = 0; first < Share::kLength; first += Tile::kVector) {
      uint32_t words[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        words[e] = bits_or_zero(element());
#pragma unroll
        for (int next = 1; next < kInWord; ++next) words[e] |= bits_or_zero(element()) << next * 8 * kBytes;
      }
      *reinterpret_cast<uint4*>(tile + Tile::template place<true, kRows>(Share::row(), Share::k() + first)) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < Share::kLength; ++i) {
      const auto* from = element();
      unsigned char* to = tile + Tile::template place<Tile::kRunsAlongK, kRows>(Share::row(), Share::k() + i);
      ptx::cp_async<4>(to, from == nullptr ? any : from, from == nullptr ? 0 : 4);
    }
  }
}

// Starts copying 16 bytes, zeros in place of null.
template <class Element>
__device__ __forceinline__ void start_vector(unsigned char* to, const Element* from, const Element* any) {
  ptx::cp_async(to, from == nullptr ? any : from, from == nullptr ? 0 : ptx::kCopyBytes);
}

}  // namespace warpwright::cuda
