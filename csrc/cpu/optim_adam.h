// The two moments that Adam and LAMB keep.

#pragma once

#include "cpu/optim.h"

WARPWRIGHT_ISA_BEGIN

template <class A>
struct AdamMoments {
  double correction1;  // Of the first moment, to be multiplied by.
  A correction2;       // The root of the second moment's, likewise.
  A beta2, rest1, rest2, eps;

  AdamMoments(const OptimParams& p, const StepScalars<A>& s)
      // In double: 1 - beta^step loses most of its digits in float.
      : correction1(1 / (1 - ::pow(p.beta1, s.step))),
        correction2(static_cast<A>(1 / ::sqrt(1 - ::pow(p.beta2, s.step)))),
        beta2(static_cast<A>(p.beta2)),
        rest1(static_cast<A>(1 - p.beta1)),
        rest2(static_cast<A>(1 - p.beta2)),
        eps(static_cast<A>(p.eps)) {}
  void update(Vec<A> g, Vec<A>& m, Vec<A>& v) const {
    m += (g - m) * rest1;
    v = v * beta2 + g * g * rest2;
  }
  Vec<A> denominator(Vec<A> v) const { return vsqrt(v) * correction2 + eps; }
};

WARPWRIGHT_ISA_END
