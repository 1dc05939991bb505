// Vectors of one register's width over the compiler's vector extension, loads and stores for each storage type, and
// the dispatch from a DType to a C++ type. float16 and bfloat16 are computed in float32, float64 in itself.

#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/isa.h"

WARPWRIGHT_ISA_BEGIN

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
// The type that a storage type is computed in.
template <class T>
using acc_t = typename AccOf<T>::type;

template <class A>
struct VecOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
// A register full of A (float or double).
template <class A>
using Vec = typename VecOf<A>::type;
template <class A>
inline constexpr int64_t kLanes = kVectorBytes / sizeof(A);

inline constexpr int kFloatLanes = kVectorBytes / 4;
typedef uint16_t U16s __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t U32s __attribute__((vector_size(kVectorBytes)));
typedef int32_t I32s __attribute__((vector_size(kVectorBytes)));

template <class A>
inline Vec<A> splat(A value) {
  return value - Vec<A>{};
}

// ---- scalar conversions ----

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float to_acc(float x) { return x; }
inline double to_acc(double x) { return x; }
inline float to_acc(BFloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }
inline float to_acc(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Scaling by 2^112 moves the exponent bias from 15 to 127, and makes subnormals normal on the way.
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f));
}

template <class T>
inline T from_acc(acc_t<T> x);
template <>
inline float from_acc<float>(float x) {
  return x;
}
template <>
inline double from_acc<double>(double x) {
  return x;
}
template <>
inline BFloat16 from_acc<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
inline Half from_acc<Half>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 lines the bits up at 2^-24, and the addition rounds to nearest even.
    const uint32_t rounded = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    return {static_cast<uint16_t>(sign | rounded)};
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
}

// ---- vector loads and stores: kLanes<acc_t<T>> elements ----

inline Vec<float> load(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline Vec<double> load(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline Vec<float> load(const BFloat16* p) {
#if defined(__AVX512F__)
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec<float>)((U32s)_mm512_maskz_cvtepu16_epi32(0xffff, raw) << 16);
#else
  U16s raw;
  std::memcpy(&raw, p, sizeof(raw));
  return (Vec<float>)(__builtin_convertvector(raw, U32s) << 16);
#endif
}
inline Vec<float> load(const Half* p) {
#if defined(__AVX512F__)
  // The zero-masked form: GCC 12 warns of its own undefined register in the plain one.
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float> v;
  for (int i = 0; i < kFloatLanes; ++i) v[i] = to_acc(p[i]);
  return v;
#endif
}

inline void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof(v)); }
inline void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof(v)); }
// The bits of bfloat16, each in a lane of 32.
inline U32s bfloat16_bits(Vec<float> v) {
  const U32s bits = (U32s)v;
  const U32s rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return v != v ? (bits >> 16) | 0x40u : rounded;
}
#if defined(__AVX512F__)
inline __m256i narrow(BFloat16, Vec<float> v) { return _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)bfloat16_bits(v)); }
inline __m256i narrow(Half, Vec<float> v) {
  return _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
#endif
inline void store(BFloat16* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(BFloat16{}, v));
#else
  const U16s raw = __builtin_convertvector(bfloat16_bits(v), U16s);
  std::memcpy(p, &raw, sizeof(raw));
#endif
}
inline void store(Half* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(Half{}, v));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kFloatLanes; ++i) p[i] = from_acc<Half>(v[i]);
#endif
}

// The first `count` lanes from memory, `fill` in the rest; nothing past them is read.
template <class T>
inline Vec<acc_t<T>> load(const T* p, int64_t count, acc_t<T> fill = 0) {
  Vec<acc_t<T>> v = splat<acc_t<T>>(fill);
  for (int64_t i = 0; i < count; ++i) v[i] = to_acc(p[i]);
  return v;
}
template <class T>
inline void store(T* p, Vec<acc_t<T>> v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = from_acc<T>(v[i]);
}

#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
// The same by masks: lane by lane, the end of a short row takes longer than the rest of it. The sanitizer does not see
// what masked instructions touch: it watches the counts of the loops above.
inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
inline Vec<float> load(const float* p, int64_t count, float fill = 0) {
  return (Vec<float>)_mm512_mask_loadu_ps((__m512)splat(fill), first_lanes(count), p);
}
inline void store(float* p, Vec<float> v, int64_t count) { _mm512_mask_storeu_ps(p, first_lanes(count), (__m512)v); }
inline Vec<float> load(const BFloat16* p, int64_t count, float fill = 0) {
  const __mmask16 mask = first_lanes(count);
  const __m512i raw = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_maskz_loadu_epi16(mask, p));
  return (Vec<float>)_mm512_mask_slli_epi32((__m512i)splat(fill), mask, raw, 16);
}
inline Vec<float> load(const Half* p, int64_t count, float fill = 0) {
  const __mmask16 mask = first_lanes(count);
  return (Vec<float>)_mm512_mask_cvtph_ps((__m512)splat(fill), mask, _mm256_maskz_loadu_epi16(mask, p));
}
inline void store(BFloat16* p, Vec<float> v, int64_t count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), narrow(BFloat16{}, v));
}
inline void store(Half* p, Vec<float> v, int64_t count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), narrow(Half{}, v));
}
#endif

// ---- small arithmetic ----

// The lanes `kStep` places further on, in a circle.
template <class A, int kStep, int... kLane>
inline Vec<A> rotate_lanes(Vec<A> v, std::integer_sequence<int, kLane...>) {
  typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> Index __attribute__((vector_size(kVectorBytes)));
  constexpr int kCount = sizeof...(kLane);
  return __builtin_shuffle(v, Index{(kLane + kStep) % kCount...});
}
// All lanes joined into one: halves, quarters and so on, which is closer than lane after lane, and done sooner.
template <class A, int kStep = kLanes<A> / 2, class Join>
inline A reduce_lanes(Vec<A> v, const Join& join) {
  if constexpr (kStep == 0) {
    return v[0];
  } else {
    v = join(v, rotate_lanes<A, kStep>(v, std::make_integer_sequence<int, int(kLanes<A>)>{}));
    return reduce_lanes<A, kStep / 2>(v, join);
  }
}
template <class A>
inline A reduce_add(Vec<A> v) {
  return reduce_lanes<A>(v, [](Vec<A> a, Vec<A> b) { return a + b; });
}
template <class V>
inline V vmax(V a, V b) {
  return a > b ? a : b;
}
template <class V>
inline V vmin(V a, V b) {
  return a < b ? a : b;
}
// In so many words: GCC makes a comparison and a copy of the above where one side is a constant.
inline Vec<float> vmax(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}
inline Vec<float> vmin(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}
inline Vec<float> vsqrt(Vec<float> v) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_sqrt_ps((__m256)v);
#else
  for (int i = 0; i < kFloatLanes; ++i) v[i] = ::sqrtf(v[i]);
  return v;
#endif
}
inline Vec<double> vsqrt(Vec<double> v) {
  for (int64_t i = 0; i < kLanes<double>; ++i) v[i] = ::sqrt(v[i]);
  return v;
}
template <class A>
inline A reduce_max(Vec<A> v) {
  return reduce_lanes<A>(v, [](Vec<A> a, Vec<A> b) { return vmax(b, a); });
}

// A full vector, as the count of a load or store: the same loop body then serves whole vectors and the tail.
struct Whole {};
template <class T>
inline Vec<acc_t<T>> load(const T* p, Whole, acc_t<T> = 0) {
  return load(p);
}
template <class T>
inline void store(T* p, Vec<acc_t<T>> v, Whole) {
  store(p, v);
}

// Calls body(offset, count) over [0, n) a vector of A at a time: `count` is Whole{} for full vectors and the number
// of elements left, an int64_t, for the tail. The body hands it on to load and store.
template <class A, class Body>
inline void for_each_vector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>) body(i, Whole{});
  if (i < n) body(i, n - i);
}

// Writes value(offset, count), a vector each, over [0, n). Two vectors are computed before either is stored: one alone
// would leave the processor idle while it waits for its own steps.
template <class A, class T, class Value>
inline void write_vectors(T* out, int64_t n, const Value& value) {
  int64_t i = 0;
  for (; i + 2 * kLanes<A> <= n; i += 2 * kLanes<A>) {
    const Vec<A> first = value(i, Whole{}), second = value(i + kLanes<A>, Whole{});
    store(out + i, first);
    store(out + i + kLanes<A>, second);
  }
  for_each_vector<A>(n - i, [&](int64_t rest, auto count) { store(out + i + rest, value(i + rest, count), count); });
}

// The sum of term(offset, count), a vector each, over [0, n). Four sums take turns: a single one would wait for each of
// its additions. Lanes of the last vector that lie past the end must be zero.
template <class A, class Term>
inline A sum_vectors(int64_t n, const Term& term) {
  constexpr int kSums = 4;
  Vec<A> sums[kSums]{};
  int64_t i = 0;
  for (; i + kSums * kLanes<A> <= n; i += kSums * kLanes<A>) {
    for (int k = 0; k < kSums; ++k) sums[k] += term(i + k * kLanes<A>, Whole{});
  }
  for_each_vector<A>(n - i, [&](int64_t rest, auto count) { sums[0] += term(i + rest, count); });
  return reduce_add<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Memory that a kernel needs for itself, a row or so, freed with it. (std::vector would be shared code: see isa.h.)
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<T*>(std::malloc(count < 1 ? sizeof(T) : count * sizeof(T)))) {
    if (data_ == nullptr) std::abort();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

// One row as contiguous memory: where it lies, or gathered into `scratch` (cols elements) when it is strided.
template <class T>
inline const T* row_data(const Rows& rows, int64_t row, int64_t cols, T* scratch) {
  const T* p = static_cast<const T*>(rows.data) + rows.offset(row);
  if (rows.col_stride == 1) return p;
  for (int64_t i = 0; i < cols; ++i) scratch[i] = p[i * rows.col_stride];
  return scratch;
}

// Calls f with a value of the storage type that `dtype` names; floating types only.
template <class F>
inline void visit_float(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat64: return f(double{});
    case DType::kFloat32: return f(float{});
    case DType::kFloat16: return f(Half{});
    case DType::kBFloat16: return f(BFloat16{});
    default: std::abort();  // The bindings let no other type through.
  }
}

WARPWRIGHT_ISA_END
