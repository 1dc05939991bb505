// The activations of an epilogue, and their derivatives.

#pragma once

#include "cpu/vec_math.h"

WARPWRIGHT_ISA_BEGIN

inline constexpr double kInvSqrt2 = 0.70710678118654752440;
inline constexpr double kInvSqrt2Pi = 0.39894228040143267794;
// gelu_tanh(x) = x / 2 * (1 + tanh(kTanhScale * (x + kTanhCubic * x^3))).
inline constexpr double kTanhScale = 0.79788456080286535588;
inline constexpr double kTanhCubic = 0.044715;

// activation(x) of the pre-activation x.
template <class A>
inline Vec<A> activate(Activation activation, Vec<A> x) {
  switch (activation) {
    case Activation::kRelu: return x != x ? x : vmax(x, Vec<A>{});
    case Activation::kGelu: return A(0.5) * x * (A(1) + verf(x * A(kInvSqrt2)));
    case Activation::kGeluTanh: {
      const Vec<A> inner = A(kTanhScale) * (x + A(kTanhCubic) * x * x * x);
      return A(0.5) * x * (A(1) + vtanh(inner));
    }
    case Activation::kSilu: return x * vsigmoid(x);
    default: return x;
  }
}

// d activation / d x. `saved` is the output for relu (the same sign, and it is there anyway), x for the others.
template <class A>
inline Vec<A> activation_grad(Activation activation, Vec<A> saved) {
  const Vec<A> x = saved;
  switch (activation) {
    case Activation::kRelu: return x > A(0) ? splat(A(1)) : Vec<A>{};
    case Activation::kGelu: {
      const Vec<A> cdf = A(0.5) * (A(1) + verf(x * A(kInvSqrt2)));
      return cdf + x * A(kInvSqrt2Pi) * vexp(A(-0.5) * x * x);
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
    default: return splat(A(1));
  }
}

WARPWRIGHT_ISA_END
