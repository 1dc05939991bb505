// Adam, AdamW, SGD and Lion on the CPU: what each does with an element, its gradient and its moments.

#include "cpu/optim.h"

#include "cpu/optim_adam.h"

WARPWRIGHT_ISA_BEGIN

namespace {

template <class A, bool kAmsgrad>
struct AdamRuleOf {
  static constexpr int kMoments = 2;
  static constexpr bool kMaximum = kAmsgrad;
  AdamMoments<A> moments;
  A step_size, decay, l2;

  AdamRuleOf(const OptimParams& p, const StepScalars<A>& s) : moments(p, s) {
    step_size = static_cast<A>(s.lr * moments.correction1);
    decay = static_cast<A>(p.decoupled ? 1 - s.lr * p.weight_decay : 1);
    l2 = static_cast<A>(p.decoupled ? 0 : p.weight_decay);
  }
  void operator()(Vec<A>& x, Vec<A> g, Vec<A>& m, Vec<A>& v, Vec<A>& maximum) const {
    if (l2 != 0) g += x * l2;
    moments.update(g, m, v);
    if constexpr (kAmsgrad) maximum = (v > maximum) | (v != v) ? v : maximum;  // A NaN stays.
    x = x * decay - step_size * m / moments.denominator(kAmsgrad ? maximum : v);
  }
};
template <class A>
using AdamRule = AdamRuleOf<A, false>;
template <class A>
using AmsgradRule = AdamRuleOf<A, true>;

template <class A>
struct SgdRule {
  static constexpr int kMoments = 1;
  static constexpr bool kMaximum = false;
  A lr, momentum, rest, l2;
  bool first_step, nesterov;

  SgdRule(const OptimParams& p, const StepScalars<A>& s)
      : lr(static_cast<A>(s.lr)),
        momentum(static_cast<A>(p.momentum)),
        rest(static_cast<A>(1 - p.dampening)),
        l2(static_cast<A>(p.weight_decay)),
        first_step(s.step <= 1),
        nesterov(p.nesterov) {}
  void operator()(Vec<A>& x, Vec<A> g, Vec<A>& buffer, Vec<A>&, Vec<A>&) const {
    if (l2 != 0) g += x * l2;
    if (momentum != 0) {
      buffer = first_step ? g : buffer * momentum + g * rest;
      g = nesterov ? g + buffer * momentum : buffer;
    }
    x -= g * lr;
  }
};

template <class A>
struct LionRule {
  static constexpr int kMoments = 1;
  static constexpr bool kMaximum = false;
  A lr, decay, beta1, rest1, beta2, rest2;

  LionRule(const OptimParams& p, const StepScalars<A>& s)
      : lr(static_cast<A>(s.lr)),
        decay(static_cast<A>(1 - s.lr * p.weight_decay)),
        beta1(static_cast<A>(p.beta1)),
        rest1(static_cast<A>(1 - p.beta1)),
        beta2(static_cast<A>(p.beta2)),
        rest2(static_cast<A>(1 - p.beta2)) {}
  void operator()(Vec<A>& x, Vec<A> g, Vec<A>& m, Vec<A>&, Vec<A>&) const {
    const Vec<A> u = m * beta1 + g * rest1;
    const Vec<A> below = u < A(0) ? splat<A>(-1) : u;  // Zero and NaN are their own signs.
    x = x * decay - lr * (u > A(0) ? splat<A>(1) : below);
    m = m * beta2 + g * rest2;
  }
};

}  // namespace

void adam(const OptimParams& p) { p.amsgrad ? update<AmsgradRule>(p) : update<AdamRule>(p); }
void sgd(const OptimParams& p) { update<SgdRule>(p); }
void lion(const OptimParams& p) { update<LionRule>(p); }

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(adam, OptimParams)
WARPWRIGHT_CPU_LAUNCHER(sgd, OptimParams)
WARPWRIGHT_CPU_LAUNCHER(lion, OptimParams)
