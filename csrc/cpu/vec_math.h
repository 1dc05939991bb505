// exp, log, tanh, the normal distribution and the logistic function on vectors: branch-free polynomials for float, libm
// lane by lane for double (gradients are checked in it, nothing is timed in it).
//
// The coefficients are minimax fits in relative error of the result (Lawson's iteration over Chebyshev nodes), rounded
// to float. tests/test_vec_math.py sweeps each function and holds it to its bound.

#pragma once

#include "cpu/vec.h"

WARPWRIGHT_ISA_BEGIN

// Horner's rule: c0 + c1 x + c2 x^2 + ...
inline Vec<float> polynomial(Vec<float>, float c0) { return splat(c0); }
template <class... Rest>
inline Vec<float> polynomial(Vec<float> x, float c0, Rest... rest) {
  return polynomial(x, rest...) * x + c0;
}

// exp(x): x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) = 1 + r + r^2 q(r). NaN, infinities, overflow and subnormal
// results come out as they should.
inline Vec<float> vexp(Vec<float> x) {
  // Past these the result is infinite or zero anyway; NaN fails both comparisons and passes through.
  const Vec<float> clamped = vmax(splat(-104.0f), vmin(splat(89.0f), x));
  // Adding 1.5 * 2^23 rounds to an integer and leaves that integer in the low bits.
  constexpr float kRound = 12582912.0f;
  const Vec<float> shifted = clamped * 1.44269504f + kRound;
  const Vec<float> n = shifted - kRound;
  // ln 2 in two parts, so that n * (the first) is exact.
  const Vec<float> r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  const Vec<float> q = polynomial(r, 0.5f, 0.1666666716337204f, 0.041666269302368164f, 0.008333265781402588f,
                                  0.0013946086401119828f, 0.0001991783210542053f);
  const Vec<float> p = r * r * q + r + 1.0f;
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
  // 2^n in two factors: n reaches -150 and 128, beyond what one exponent holds.
  const I32s whole = (I32s)shifted - bit_cast<int32_t>(kRound);
  const I32s half = whole >> 1;
  const Vec<float> scale1 = (Vec<float>)((half + 127) << 23);
  const Vec<float> scale2 = (Vec<float>)((whole - half + 127) << 23);
  return x != x ? x : p * scale1 * scale2;
#endif
}

// log(x) = n ln 2 + log(1 + f), with 1 + f in [sqrt(1/2), sqrt(2)) and log(1 + f) = 2 atanh(f / (2 + f)).
inline Vec<float> vlog(Vec<float> x) {
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  constexpr float kSmallestNormal = 0x1p-126f, kInfinity = std::numeric_limits<float>::infinity();
  const I32s subnormal = x < kSmallestNormal;
  const I32s bits = (I32s)(subnormal ? x * 0x1p23f : x) - kSqrtHalf;
  const Vec<float> n = __builtin_convertvector((bits >> 23) - (subnormal & 23), Vec<float>);
  const Vec<float> f = (Vec<float>)((bits & 0x7fffff) + kSqrtHalf) - 1.0f;
  const Vec<float> s = f / (2.0f + f), z = s * s, half_square = 0.5f * f * f;
  const Vec<float> tail = z * polynomial(z, 0.6666678190f, 0.3997673392f, 0.2989518046f);
  // ln 2 in two parts, as in vexp; f is exact and goes in last.
  const Vec<float> low = s * (half_square + tail) - n * 2.12194440e-4f;
  const Vec<float> y = n * 0.693359375f - ((half_square - low) - f);
  const Vec<float> above_zero = x < kInfinity ? y : x;  // Infinity and NaN are their own logarithms.
  const Vec<float> at_zero = x == 0.0f ? splat(-kInfinity) : above_zero;
  return x < 0.0f ? splat(std::numeric_limits<float>::quiet_NaN()) : at_zero;
}

inline Vec<float> vsigmoid(Vec<float> x) { return 1.0f / (1.0f + vexp(-x)); }

inline Vec<float> vabs(Vec<float> x) { return (Vec<float>)((I32s)x & 0x7fffffff); }
inline Vec<float> copy_sign(Vec<float> magnitude, Vec<float> sign) {
  return (Vec<float>)(((I32s)magnitude & 0x7fffffff) | ((I32s)sign & bit_cast<int32_t>(0x80000000u)));
}

// tanh(x): x + x^3 P(x^2) near zero, 1 - 2 / (exp(2 |x|) + 1) beyond, where that loses no digits.
inline Vec<float> vtanh(Vec<float> x) {
  const Vec<float> a = vabs(x), z = x * x;
  const Vec<float> small = x + x * z *
                                   polynomial(z, -0.3333328366279602f, 0.13331490755081177f, -0.05374349653720856f,
                                              0.020650578662753105f, -0.005717036779969931f);
  const Vec<float> large = copy_sign(1.0f - 2.0f / (vexp(a + a) + 1.0f), x);
  return a < 0.625f ? small : large;
}

// How much of the normal distribution lies below x; `density` is exp(-x^2 / 2), which gelu's derivative needs as well:
// 1/2 + x P(x^2) where |x| < 1, and beyond, with t = 1 / (1 + 0.4 |x|), the smaller side is density t Q(t).
inline Vec<float> vnormal_cdf(Vec<float> x, Vec<float> density) {
  const Vec<float> a = vabs(x), t = 1.0f / (1.0f + 0.4f * a);
  const Vec<float> middle =
      0.5f + x * polynomial(x * x, 0.3989422917366028f, -0.06649035960435867f, 0.009973323903977871f,
                            -0.0011863299878314137f, 0.00011348645784892142f, -7.654239198018331e-06f);
  const Vec<float> tail =
      density * t *
      polynomial(t, 0.159595787525177f, 0.1590999960899353f, 0.13900227844715118f, 0.05554066225886345f,
                 0.10536296665668488f, -0.18642780184745789f, 0.0681212916970253f);
  return a < 1.0f ? middle : (x < 0.0f ? tail : 1.0f - tail);
}
inline Vec<double> vnormal_cdf(Vec<double> x, Vec<double>) {
  for (int64_t i = 0; i < kLanes<double>; ++i) x[i] = 0.5 * ::erfc(-0.70710678118654752440 * x[i]);
  return x;
}

#define WARPWRIGHT_LANE_BY_LANE(NAME, EXPRESSION)  \
  inline Vec<double> NAME(Vec<double> v) {         \
    for (int64_t i = 0; i < kLanes<double>; ++i) { \
      const double x = v[i];                       \
      v[i] = EXPRESSION;                           \
    }                                              \
    return v;                                      \
  }
WARPWRIGHT_LANE_BY_LANE(vexp, ::exp(x))
WARPWRIGHT_LANE_BY_LANE(vlog, ::log(x))
WARPWRIGHT_LANE_BY_LANE(vtanh, ::tanh(x))
WARPWRIGHT_LANE_BY_LANE(vsigmoid, 1.0 / (1.0 + ::exp(-x)))
#undef WARPWRIGHT_LANE_BY_LANE

WARPWRIGHT_ISA_END
