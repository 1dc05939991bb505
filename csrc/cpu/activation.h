// The activations of an epilogue, and their derivatives.

#pragma once

#include "cpu/vec_math.h"

WARPWRIGHT_ISA_BEGIN

inline constexpr double kInvSqrt2Pi = 0.39894228040143267794;
// gelu_tanh(x) = x / 2 * (1 + tanh(kTanhScale * (x + kTanhCubic * x^3))).
inline constexpr double kTanhScale = 0.79788456080286535588;
inline constexpr double kTanhCubic = 0.044715;

// activation(x) of the pre-activation x.
template <class A>
inline Vec<A> activate(Activation activation, Vec<A> x) {
  switch (activation) {
    case Activation::kRelu: return x != x ? x : vmax(x, Vec<A>{});
    case Activation::kGelu: return x * vnormal_cdf(x, vexp(A(-0.5) * x * x));
    case Activation::kGeluTanh: {
      const Vec<A> inner = A(kTanhScale) * (x + A(kTanhCubic) * x * x * x);
      return A(0.5) * x * (A(1) + vtanh(inner));
    }
    case Activation::kSilu: return x * vsigmoid(x);
    case Activation::kSigmoid: return vsigmoid(x);
    case Activation::kTanh: return vtanh(x);
    case Activation::kLeakyRelu: return x > A(0) ? x : x * A(kLeakySlope);
    case Activation::kHardswish: {
      const Vec<A> shifted = x + A(3);
      return x * (shifted < A(0) ? Vec<A>{} : (shifted > A(6) ? splat(A(6)) : shifted)) * A(1.0 / 6);
    }
    default: return x;
  }
}

// d activation / d x. `saved` is the output where that says enough (relu, leaky_relu, sigmoid, tanh), as it is there
// anyway; x for the others. See needs_preact of csrc/bindings/gemm.h.
template <class A>
inline Vec<A> activation_grad(Activation activation, Vec<A> saved) {
  const Vec<A> x = saved;
  switch (activation) {
    case Activation::kRelu: return x > A(0) ? splat(A(1)) : Vec<A>{};
    case Activation::kGelu: {
      const Vec<A> density = vexp(A(-0.5) * x * x);
      return vnormal_cdf(x, density) + x * A(kInvSqrt2Pi) * density;
    }
    case Activation::kGeluTanh: {
      const Vec<A> t = vtanh(A(kTanhScale) * (x + A(kTanhCubic) * x * x * x));
      const Vec<A> inner_grad = A(kTanhScale) * (A(1) + A(3 * kTanhCubic) * x * x);
      return A(0.5) * (A(1) + t) + A(0.5) * x * (A(1) - t * t) * inner_grad;
    }
    case Activation::kSilu: {
      const Vec<A> s = vsigmoid(x);
      return s * (A(1) + x * (A(1) - s));
    }
    case Activation::kSigmoid: return saved * (A(1) - saved);
    case Activation::kTanh: return A(1) - saved * saved;
    case Activation::kLeakyRelu: return saved > A(0) ? splat(A(1)) : splat(A(kLeakySlope));
    case Activation::kHardswish: {
      const Vec<A> middle = x * A(1.0 / 3) + A(0.5);
      return x <= A(-3) ? Vec<A>{} : (x >= A(3) ? splat(A(1)) : middle);
    }
    default: return splat(A(1));
  }
}

WARPWRIGHT_ISA_END
