// float32 to and from the 8-bit formats, a vector at a time, in integer arithmetic: the same bits on every processor.

#pragma once

#include "cpu/vec.h"
#include "kernels/quantize.h"

WARPWRIGHT_ISA_BEGIN

typedef uint8_t U8s __attribute__((vector_size(kVectorBytes / 4)));

inline U32s select(U32s mask, U32s a, U32s b) { return (a & mask) | (b & ~mask); }

// The bits of the largest magnitude. As bit patterns magnitudes are ordered like integers, with NaN above infinity: it
// is not lost as in a comparison.
template <class T>
inline uint32_t largest_magnitude(const T* x, int64_t count) {
  I32s best{};
  for_each_vector<float>(count, [&](int64_t i, auto n) { best = vmax(best, (I32s)load(x + i, n) & 0x7fffffff); });
  int32_t largest = 0;
  for (int lane = 0; lane < kFloatLanes; ++lane) largest = best[lane] > largest ? best[lane] : largest;
  return static_cast<uint32_t>(largest);
}

// The scale of a group whose largest magnitude has these bits; `largest` is the format's largest number.
inline float scale_of_bits(uint32_t magnitude, float largest) {
  if (magnitude > 0x7f800000u) return std::numeric_limits<float>::quiet_NaN();
  if (magnitude == 0) return 1.0f;
  const float scale = bit_cast<float>(magnitude) / largest;
  return scale < kMinScale ? kMinScale : scale;
}

// Adding 1.5 * 2^23 rounds to an integer, to the even one between two.
inline Vec<float> round_even(Vec<float> x) { return x + 12582912.0f - 12582912.0f; }

// round(x), an integer, as int8; NaN becomes 0. x is clamped before, so that it stays where round_even is right.
template <class Round>
inline U32s encode_int8(Vec<float> x, const Round& round) {
  const Vec<float> clamped = vmax(splat(-Int8::kMax), vmin(splat(Int8::kMax), x));
  const U32s code = (U32s) __builtin_convertvector(round(clamped), I32s) & 0xffu;
  return select((U32s)(x != x), U32s{}, code);
}

// 2^exponent, for normal numbers.
constexpr uint32_t power_bits(int exponent) { return static_cast<uint32_t>(exponent + 127) << 23; }

// Rounds to the nearest number of format F, to the even one between two; what is too large becomes the largest.
template <class F>
inline U32s encode_float8(Vec<float> x) {
  constexpr int kDropped = 23 - F::kMantissa;
  const U32s bits = (U32s)x, sign = (bits >> 24) & 0x80u;
  const Vec<float> clamped = vmin((Vec<float>)(bits & 0x7fffffffu), splat(F::kMax));
  const U32s magnitude = (U32s)clamped;
  const U32s odd = (magnitude >> kDropped) & 1u;
  const uint32_t rebias = static_cast<uint32_t>(127 - F::kBias) << F::kMantissa;
  const U32s normal = ((magnitude + ((1u << (kDropped - 1)) - 1u) + odd) >> kDropped) - rebias;
  // One unit in the last place of this number is the distance between subnormals: the addition rounds to them.
  constexpr uint32_t kShift = power_bits(1 - F::kBias + kDropped);
  const U32s subnormal = (U32s)(clamped + bit_cast<float>(kShift)) - kShift;
  const U32s is_small = (U32s)(magnitude < power_bits(1 - F::kBias));
  return select((U32s)(x != x), U32s{} + kFloat8Nan, sign | select(is_small, subnormal, normal));
}

template <class F>
inline Vec<float> decode_float8(U32s byte) {
  constexpr int kDropped = 23 - F::kMantissa;
  const U32s sign = (byte & 0x80u) << 24, magnitude = byte & 0x7fu;
  const U32s normal = (magnitude << kDropped) + (static_cast<uint32_t>(127 - F::kBias) << 23);
  const float step = bit_cast<float>(power_bits(1 - F::kBias - F::kMantissa));
  const U32s subnormal = (U32s)(__builtin_convertvector((I32s)magnitude, Vec<float>) * step);
  const U32s finite = select((U32s)(magnitude < (1u << F::kMantissa)), subnormal, normal);
  const U32s odd = select((U32s)(magnitude >= F::kFirstNan), U32s{} + 0x7fc00000u, U32s{} + 0x7f800000u);
  return (Vec<float>)(sign | select((U32s)(magnitude >= F::kFirstNonFinite), odd, finite));
}

// By the instructions' own names: GCC 12 makes these conversions element by element.
inline void store_bytes(uint8_t* p, U32s v, Whole) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v));
#else
  const U8s bytes = __builtin_convertvector(v, U8s);
  std::memcpy(p, &bytes, sizeof(bytes));
#endif
}
inline void store_bytes(uint8_t* p, U32s v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = static_cast<uint8_t>(v[i]);
}
inline U32s load_bytes(const uint8_t* p, Whole) {
#if defined(__AVX512F__)
  return (U32s)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (U32s)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  U8s bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return __builtin_convertvector(bytes, U32s);
#endif
}
inline U32s load_bytes(const uint8_t* p, int64_t count) {
  U32s v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

// An element of format F as a storage type, for code that is generic over what it stores.
template <class F>
struct Float8 {
  uint8_t bits;
};
template <class F>
inline void store(Float8<F>* p, Vec<float> v, Whole count) {
  store_bytes(reinterpret_cast<uint8_t*>(p), encode_float8<F>(v), count);
}
template <class F>
inline void store(Float8<F>* p, Vec<float> v, int64_t count) {
  store_bytes(reinterpret_cast<uint8_t*>(p), encode_float8<F>(v), count);
}

// Calls f with the format that `dtype` names.
template <class Function>
inline void visit_float8(DType dtype, const Function& f) {
  switch (dtype) {
    case DType::kFloat8E4M3: return f(E4M3{});
    case DType::kFloat8E5M2: return f(E5M2{});
    default: std::abort();  // The bindings let no other type through.
  }
}

WARPWRIGHT_ISA_END
