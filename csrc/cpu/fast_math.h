// Functions for tensors that fit the caches, where arithmetic and not memory sets the time. Powers of two take half the
// operations of vexp, at the price of a relative error that grows with the exponent (where the power is small), and
// what is rounded to 16 bits afterwards needs no more than 14.
//
// The coefficients are minimax fits in relative error, as those of cpu/vec_math.h.

#pragma once

#include <type_traits>

#include "cpu/activation.h"

WARPWRIGHT_ISA_BEGIN

// Whether results are rounded to 16 bits.
template <class T>
inline constexpr bool kNarrow = !std::is_same_v<T, acc_t<T>>;

inline constexpr float kLog2E = 1.44269504f;

// 2^t. NaN stays NaN; beyond the exponents of float come 0 and infinity. kNarrow: to 3e-6, else to 1e-7.
template <bool kNarrow>
inline Vec<float> vexp2(Vec<float> t) {
  // See vexp: adding 1.5 * 2^23 rounds to an integer and leaves that integer in the low bits.
  constexpr float kRound = 12582912.0f, kLowest = -126.0f, kHighest = 128.0f;
  const Vec<float> clamped = vmax(splat(kLowest - 30.0f), vmin(splat(kHighest + 1.0f), t));
  const Vec<float> shifted = clamped + kRound, n = shifted - kRound, f = clamped - n;
  const Vec<float> p = kNarrow ? polynomial(f, 1.0f, 0.6931241750717163f, 0.24024099111557007f, 0.05590642988681793f,
                                            0.009582853876054287f)
                               : polynomial(f, 1.0f, 0.6931470036506653f, 0.24022242426872253f, 0.05550733581185341f,
                                            0.009671512991189957f, 0.001326472731307149f);
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
  // One factor holds the normal exponents; the others' results are replaced.
  const I32s exponent = (I32s)shifted - bit_cast<int32_t>(kRound) + 127;
  const Vec<float> y = p * (Vec<float>)(exponent << 23);
  const Vec<float> above_zero = t < kLowest ? Vec<float>{} : y;
  const Vec<float> below_infinity = t >= kHighest - 0.5f ? splat(std::numeric_limits<float>::infinity()) : above_zero;
  return t != t ? t : below_infinity;
#endif
}
template <bool>
inline Vec<double> vexp2(Vec<double> t) {
  return vexp(t * 0.69314718055994530942);
}

// 1 / x; kNarrow: to 2^-14 where the processor has that.
template <bool kNarrow>
inline Vec<float> vreciprocal(Vec<float> x) {
#if defined(__AVX512F__)
  if constexpr (kNarrow) return (Vec<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
#endif
  return 1.0f / x;
}

template <bool kNarrow>
inline Vec<float> fast_sigmoid(Vec<float> x) {
  return vreciprocal<kNarrow>(1.0f + vexp2<kNarrow>(x * -kLog2E));
}

// vnormal_cdf and the density that it comes with.
struct Normal {
  Vec<float> cdf, density;
};
template <bool kNarrow>
inline Normal fast_normal(Vec<float> x) {
  const Vec<float> density = vexp2<kNarrow>(x * x * (-0.5f * kLog2E));
  // The smaller side is density t Q(t) everywhere, to 4e-7 or to 1e-4.
  constexpr float kScale = kNarrow ? 0.4f : 0.35f;
  const Vec<float> t = vreciprocal<kNarrow>(1.0f + kScale * vabs(x));
  const Vec<float> q = kNarrow ? polynomial(t, 0.15957282483577728f, 0.16050998866558075f, 0.12058354169130325f,
                                            0.14404334127902985f, -0.08475710451602936f)
                               : polynomial(t, 0.13962124288082123f, 0.13986453413963318f, 0.11981413513422012f,
                                            0.10558001697063446f, -0.023275794461369514f, 0.15940982103347778f,
                                            -0.2559162974357605f, 0.14406763017177582f, -0.029165299609303474f);
  const Vec<float> tail = density * t * q;
  return {x < 0.0f ? tail : 1.0f - tail, density};
}

// activate and activation_grad for tensors; kNarrow where the result is rounded to 16 bits.
template <bool kNarrow>
inline Vec<float> fast_activate(Activation activation, Vec<float> x) {
  switch (activation) {
    case Activation::kGelu: return x * fast_normal<kNarrow>(x).cdf;
    case Activation::kGeluTanh: {
      if constexpr (!kNarrow) return activate<float>(activation, x);
      // 1/2 (1 + tanh(y)) is sigmoid(2 y), to what 16 bits need.
      const Vec<float> inner = x * (2 * float(kTanhScale) + 2 * float(kTanhScale * kTanhCubic) * x * x);
      return x * fast_sigmoid<kNarrow>(inner);
    }
    case Activation::kSilu: return x * fast_sigmoid<kNarrow>(x);
    case Activation::kSigmoid: return fast_sigmoid<kNarrow>(x);
    default: return activate<float>(activation, x);
  }
}
template <bool kNarrow>
inline Vec<float> fast_activation_grad(Activation activation, Vec<float> x) {
  switch (activation) {
    case Activation::kGelu: {
      const Normal normal = fast_normal<kNarrow>(x);
      return normal.cdf + x * float(kInvSqrt2Pi) * normal.density;
    }
    case Activation::kGeluTanh: {
      if constexpr (!kNarrow) return activation_grad<float>(activation, x);
      const Vec<float> inner = x * (2 * float(kTanhScale) + 2 * float(kTanhScale * kTanhCubic) * x * x);
      const Vec<float> slope = 2 * float(kTanhScale) + 6 * float(kTanhScale * kTanhCubic) * x * x;
      const Vec<float> s = fast_sigmoid<kNarrow>(inner);
      return s + x * s * (1.0f - s) * slope;
    }
    case Activation::kSilu: {
      const Vec<float> s = fast_sigmoid<kNarrow>(x);
      return s * (1.0f + x * (1.0f - s));
    }
    default: return activation_grad<float>(activation, x);
  }
}
template <bool>
inline Vec<double> fast_activate(Activation activation, Vec<double> x) {
  return activate<double>(activation, x);
}
template <bool>
inline Vec<double> fast_activation_grad(Activation activation, Vec<double> x) {
  return activation_grad<double>(activation, x);
}

WARPWRIGHT_ISA_END
