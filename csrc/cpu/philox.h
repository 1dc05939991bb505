// The bits of kernels/philox.h, a vector's lanes of blocks at a time.

#pragma once

#include "cpu/vec.h"
#include "kernels/philox.h"

WARPWRIGHT_ISA_BEGIN

typedef uint64_t U64s __attribute__((vector_size(kVectorBytes)));

// Products of the even lanes' words, 64 bits each.
inline U64s multiply_even(U32s a, U32s b) {
#if defined(__AVX512F__)
  return (U64s)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64s)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (U64s)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return ((U64s)a & 0xffffffffull) * ((U64s)b & 0xffffffffull);
#endif
}

struct WideProduct {
  U32s high, low;
};

inline WideProduct multiply_wide(U32s a, uint32_t factor) {
  constexpr uint64_t kLow = 0xffffffffull;
  const U32s factors = factor - U32s{};
  const U64s even = multiply_even(a, factors), odd = multiply_even((U32s)((U64s)a >> 32), factors);
  return {(U32s)((even >> 32) | (odd & ~kLow)), (U32s)((even & kLow) | (odd << 32))};
}

// Lane i of the first and lane i of the second, in turns: of the lower half of both, or of the upper.
inline U32s interleave_low(U32s a, U32s b) {
  U32s order;
  for (uint32_t i = 0; i < kFloatLanes; ++i) order[i] = i / 2 + (i % 2) * kFloatLanes;
  return __builtin_shuffle(a, b, order);
}
inline U32s interleave_high(U32s a, U32s b) {
  U32s order;
  for (uint32_t i = 0; i < kFloatLanes; ++i) order[i] = i / 2 + (i % 2) * kFloatLanes + kFloatLanes / 2;
  return __builtin_shuffle(a, b, order);
}

// Elements whose words are made at once.
inline constexpr int64_t kWords = kPhiloxWords * kFloatLanes;

// The words of elements [kPhiloxWords * quad, + kWords) of a row, in order.
inline void philox_words(int64_t seed, int64_t row, int64_t quad, int64_t offset, U32s words[kPhiloxWords]) {
  auto key_a = static_cast<uint32_t>(seed), key_b = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  U32s c0 = static_cast<uint32_t>(quad) - U32s{}, c1 = static_cast<uint32_t>(row) - U32s{};
  for (uint32_t i = 0; i < kFloatLanes; ++i) c0[i] += i;
  U32s c2 = static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32) - U32s{};
  U32s c3 = static_cast<uint32_t>(offset) - U32s{};
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const WideProduct a = multiply_wide(c0, kPhiloxMultiplyA), b = multiply_wide(c2, kPhiloxMultiplyB);
    c0 = b.high ^ c1 ^ key_a;
    c1 = b.low;
    c2 = a.high ^ c3 ^ key_b;
    c3 = a.low;
    key_a += kPhiloxRaiseA;
    key_b += kPhiloxRaiseB;
  }
  const U32s even_low = interleave_low(c0, c2), odd_low = interleave_low(c1, c3);
  const U32s even_high = interleave_high(c0, c2), odd_high = interleave_high(c1, c3);
  words[0] = interleave_low(even_low, odd_low);
  words[1] = interleave_high(even_low, odd_low);
  words[2] = interleave_low(even_high, odd_high);
  words[3] = interleave_high(even_high, odd_high);
}

WARPWRIGHT_ISA_END
