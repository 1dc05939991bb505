// Packed weights in registers: the integers of a word as exact 16-bit floats, and what they are scaled by.

#pragma once

#include <bit>
#include <cstring>
#include <type_traits>

#include "cuda/dtype.cuh"
#include "kernels/packed.h"

namespace warpwright::cuda {

// What a 16-byte piece of a row holds.
template <int kBits>
inline constexpr int kPieceElements = 128 / kBits;
// Elements are taken apart eight at a time: the words that hold as many.
inline constexpr int kUnpacked = 8;
template <int kBits>
inline constexpr int kUnpackedWords = kUnpacked * kBits / 32;

template <class T>
using PairOf = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

// A word as two 16-bit floats, and back. (The pairs are not trivially copyable: std::bit_cast refuses them.)
template <class T>
__device__ __forceinline__ PairOf<T> as_pair(uint32_t word) {
  PairOf<T> pair;
  std::memcpy(static_cast<void*>(&pair), &word, sizeof(word));
  return pair;
}
template <class Pair>
__device__ __forceinline__ uint32_t as_word(Pair pair) {
  uint32_t word;
  std::memcpy(&word, &pair, sizeof(word));
  return word;
}

// An integer in the low bits of 1024 (float16) or 128 (bfloat16) is added to it: the bits of a float without a
// conversion. bfloat16 has 7 of them, enough for 4-bit elements and their zero points.
template <class T>
inline constexpr uint32_t kMagic = std::is_same_v<T, __half> ? 0x64006400u : 0x43004300u;
// The same for float32, for all of its 23 bits.
inline constexpr uint32_t kFloatMagic = 0x4b000000u;

template <class T, int kBits>
inline constexpr bool kThroughFloat = kBits == 8 && !std::is_same_v<T, __half>;

// A zero point as unpack_pairs takes it.
template <class T, int kBits>
__device__ __forceinline__ uint32_t zero_bits(uint32_t zero) {
  return kThroughFloat<T, kBits> ? kFloatMagic | zero : kMagic<T> | zero | zero << 16;
}

// Two elements less their zero point, exact, in the halves of a word: pair `pair` of the four that `words` hold.
template <class T, int kBits>
__device__ __forceinline__ uint32_t unpack_pair(const uint32_t (&words)[kUnpackedWords<kBits>], int pair,
                                                uint32_t zero) {
  if constexpr (kBits == 4) {
    return as_word(__hsub2(as_pair<T>((words[0] >> (4 * pair) & 0x000f000fu) | kMagic<T>), as_pair<T>(zero)));
  } else {
    const uint32_t both = words[pair / 2] >> (16 * (pair % 2));
    if constexpr (kThroughFloat<T, kBits>) {
      const float offset = std::bit_cast<float>(zero);
      return pack_pair<T>(std::bit_cast<float>(kFloatMagic | (both & 0xffu)) - offset,
                          std::bit_cast<float>(kFloatMagic | (both >> 8 & 0xffu)) - offset);
    } else {
      return as_word(__hsub2(as_pair<T>((both & 0xffu) | (both & 0xff00u) << 8 | kMagic<T>), as_pair<T>(zero)));
    }
  }
}

// The group that column `k` of a row belongs to.
__device__ __forceinline__ int64_t group_of(const PackedWeight& w, int64_t k) { return k >> w.group_shift; }

template <class T>
__device__ __forceinline__ T scale_at(const PackedWeight& w, int64_t row, int64_t group) {
  return static_cast<const T*>(w.scale)[row * w.scale_row + group * w.scale_col];
}

__device__ __forceinline__ uint32_t zero_at(const PackedWeight& w, int64_t row, int64_t group) {
  if (w.zero == nullptr) return static_cast<uint32_t>(packed_center(w.bits));
  return static_cast<const uint8_t*>(w.zero)[row * w.zero_row + group * w.zero_col];
}

// The product of few rows, where pieces of 16 bytes fit; packed_mma.cu sends the others elsewhere.
bool gemv_packed_takes(const LinearPackedParams& params);
void gemv_packed(const LinearPackedParams& params, Stream stream);

}  // namespace warpwright::cuda
