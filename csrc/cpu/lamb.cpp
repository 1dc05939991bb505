// LAMB (You et al., 2020) on the CPU: the moments and both norms in one pass, the step in a second.

#include "cpu/optim_adam.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// P: the parameter's and gradient's storage type. Moments have the computing type.
template <class P>
struct LambChunk {
  using A = acc_t<P>;
  const OptimParams& p;
  int index;
  const OptimTensor& t;
  int64_t first, count;
  StepScalars<A> scalars;
  AdamMoments<A> moments;
  A correction1, weight_decay;
  Piece<P, A> piece;

  LambChunk(const OptimParams& params, int32_t chunk)
      : p(params),
        index(p.tensor_of(chunk)),
        t(p.tensors[index]),
        first((chunk - p.first_chunk[index]) * kOptimChunk),
        count(t.numel - first < kOptimChunk ? t.numel - first : kOptimChunk),
        scalars(p, t),
        moments(p, scalars),
        correction1(static_cast<A>(moments.correction1)),
        weight_decay(static_cast<A>(p.weight_decay)),
        piece{static_cast<P*>(t.param) + first,
              static_cast<const P*>(t.grad) + first,
              {static_cast<A*>(t.moments[0]) + first, static_cast<A*>(t.moments[1]) + first},
              nullptr,
              offset_or_null<float>(t.master, first),
              nullptr,
              count} {}

  Vec<A> direction(Vec<A> x, Vec<A> m, Vec<A> v) const {
    return m * correction1 / moments.denominator(v) + x * weight_decay;
  }

  // Updates the moments, and gives the sums of squares of the parameter and of its direction.
  void update_moments(A* sums) const {
    Vec<A> squares[2]{};
    for_each_vector<A>(count, [&](int64_t i, auto n) {
      const Vec<A> g = scalars.gradient(load(piece.grad + i, n));
      Vec<A> m = load(piece.moments[0] + i, n), v = load(piece.moments[1] + i, n);
      moments.update(g, m, v);
      store(piece.moments[0] + i, m, n);
      store(piece.moments[1] + i, v, n);
      const Vec<A> x = piece.value(i, n), u = direction(x, m, v);
      squares[0] += x * x;  // Lanes past the end are 0 in all of them.
      squares[1] += u * u;
    });
    for (int k = 0; k < 2; ++k) sums[k] = reduce_add<A>(squares[k]);
  }

  void step(A trust) const {
    const A step_size = static_cast<A>(scalars.lr) * trust;
    const int64_t length = p.stochastic ? kCodeBlock : kOptimChunk;
    for (int64_t at = 0; at < count; at += length) step_part(step_size, at, count - at < length ? count - at : length);
  }

 private:
  void step_part(A step_size, int64_t at, int64_t size) const {
    uint32_t words[kCodeBlock];
    Piece<P, A> part{piece.param + at,
                     nullptr,
                     {piece.moments[0] + at, piece.moments[1] + at},
                     nullptr,
                     offset_or_null<float>(piece.master, at),
                     nullptr,
                     size};
    if (p.stochastic) {
      random_words(p, t, first + at, size, words);
      part.words = words;
    }
    for_each_vector<A>(size, [&](int64_t i, auto n) {
      const Vec<A> x = part.value(i, n);
      const Vec<A> u = direction(x, load(part.moments[0] + i, n), load(part.moments[1] + i, n));
      part.set_value(i, x - step_size * u, n);
    });
  }
};

// How long the parameter is against its direction.
template <class A>
A trust_ratio(const OptimParams& p, int tensor) {
  const A* partials = static_cast<const A*>(p.partials);
  double sums[2]{};
  for (int32_t chunk = p.first_chunk[tensor]; chunk < p.first_chunk[tensor + 1]; ++chunk) {
    for (int k = 0; k < 2; ++k) sums[k] += partials[2 * chunk + k];
  }
  return static_cast<A>(sums[0] > 0 && sums[1] > 0 ? ::sqrt(sums[0]) / ::sqrt(sums[1]) : 1.0);
}

template <class P>
void lamb_step(const OptimParams& p) {
  using A = acc_t<P>;
  A* partials = static_cast<A*>(p.partials);
  A* trust = static_cast<A*>(p.trust);
  for_each_chunk(p, [&](int32_t chunk) { LambChunk<P>(p, chunk).update_moments(partials + 2 * chunk); });
  for (int t = 0; t < p.count; ++t) trust[t] = trust_ratio<A>(p, t);
  for_each_chunk(p, [&](int32_t chunk) {
    const LambChunk<P> part(p, chunk);
    part.step(trust[part.index]);
  });
}

}  // namespace

void lamb(const OptimParams& p) {
  if (p.found_inf != nullptr && *p.found_inf != 0) return;
  visit_float(p.dtype, [&](auto tag) { lamb_step<decltype(tag)>(p); });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(lamb, OptimParams)
