// LAMB (You et al., 2020) on the CPU: the moments and both norms in one pass, the step in a second. 8-bit moments are
// only read by the first: the step is made of moments before they are rounded, so the second needs the old codes.

#include "cpu/optim_adam.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// P: the parameter's and gradient's storage type; S: that of the moments, the computing type or codes.
template <class P, class S>
struct LambChunk {
  using A = acc_t<P>;
  const OptimParams& p;
  int index;
  const OptimTensor& t;
  int64_t first, count;
  StepScalars<A> scalars;
  AdamMoments<A> moments;
  A correction1, weight_decay;

  LambChunk(const OptimParams& params, int32_t chunk)
      : p(params),
        index(p.tensor_of(chunk)),
        t(p.tensors[index]),
        first((chunk - p.first_chunk[index]) * kOptimChunk),
        count(t.numel - first < kOptimChunk ? t.numel - first : kOptimChunk),
        scalars(p, t),
        moments(p, scalars),
        correction1(static_cast<A>(moments.correction1)),
        weight_decay(static_cast<A>(p.weight_decay)) {}

  Vec<A> direction(Vec<A> x, Vec<A> m, Vec<A> v) const {
    return m * correction1 / moments.denominator(v) + x * weight_decay;
  }

  // Updates the moments, unless they are codes, and gives the sums of squares of the parameter and of its direction.
  void update_moments(A* sums) const {
    Vec<A> squares[2]{};
    for_each_block(false, [&](const Piece<P, A>& piece) {
      for_each_vector<A>(piece.count, [&](int64_t i, auto n) {
        Vec<A> m, v;
        load_updated(piece, i, n, m, v);
        if constexpr (!kIsCode<S>) store_moments(piece, i, n, m, v);
        const Vec<A> x = piece.value(i, n), u = direction(x, m, v);
        squares[0] += x * x;  // 0 past the end.
        squares[1] += within(u * u, n);
      });
    });
    for (int k = 0; k < 2; ++k) sums[k] = reduce_add<A>(squares[k]);
  }

  void step(A trust) const {
    const A step_size = static_cast<A>(scalars.lr) * trust;
    for_each_block(true, [&](const Piece<P, A>& piece) {
      for_each_vector<A>(piece.count, [&](int64_t i, auto n) {
        Vec<A> m, v;
        if constexpr (kIsCode<S>) {
          load_updated(piece, i, n, m, v);
          store_moments(piece, i, n, m, v);
        } else {
          m = load(piece.moments[0] + i, n), v = load(piece.moments[1] + i, n);
        }
        const Vec<A> x = piece.value(i, n);
        piece.set_value(i, x - step_size * direction(x, m, v), n);
      });
    });
  }

 private:
  // Without what lies past the end, where a direction is 0 / 0 if eps is 0.
  static Vec<A> within(Vec<A> v, Whole) { return v; }
  static Vec<A> within(Vec<A> v, int64_t count) {
    for (int64_t i = count; i < kLanes<A>; ++i) v[i] = 0;
    return v;
  }
  template <class Count>
  void load_updated(const Piece<P, A>& piece, int64_t i, Count n, Vec<A>& m, Vec<A>& v) const {
    m = load(piece.moments[0] + i, n), v = load(piece.moments[1] + i, n);
    moments.update(scalars.gradient(load(piece.grad + i, n)), m, v);
  }
  template <class Count>
  static void store_moments(const Piece<P, A>& piece, int64_t i, Count n, Vec<A> m, Vec<A> v) {
    store(piece.moments[0] + i, m, n);
    store(piece.moments[1] + i, v, n);
  }

  // Calls f with the chunk's pieces: all of it, or blocks where there are codes or random bits. `steps`: f changes
  // parameters, and what it makes of decoded moments is encoded.
  template <class F>
  void for_each_block(bool steps, const F& f) const {
    const bool random = steps && p.stochastic;
    const int64_t length = kIsCode<S> || random ? kCodeBlock : kOptimChunk;
    for (int64_t done = 0; done < count; done += length) {
      const int64_t at = first + done, size = count - done < length ? count - done : length;
      uint32_t words[kCodeBlock];
      if (random) random_words(p, t, at, size, words);
      Piece<P, A> piece{static_cast<P*>(t.param) + at,       static_cast<const P*>(t.grad) + at, {},  nullptr,
                        offset_or_null<float>(t.master, at), random ? words : nullptr,           size};
      if constexpr (kIsCode<S>) {
        float values[2][kCodeBlock];
        decode_moments(t, at, size, values);
        for (int k = 0; k < 2; ++k) piece.moments[k] = values[k];
        f(piece);
        if (steps) encode_moments(t, at, size, values);
      } else {
        for (int k = 0; k < 2; ++k) piece.moments[k] = static_cast<A*>(t.moments[k]) + at;
        f(piece);
      }
    }
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

template <class P, class S>
void lamb_step(const OptimParams& p) {
  using A = acc_t<P>;
  A* partials = static_cast<A*>(p.partials);
  A* trust = static_cast<A*>(p.trust);
  for_each_chunk(p, [&](int32_t chunk) { LambChunk<P, S>(p, chunk).update_moments(partials + 2 * chunk); });
  for (int t = 0; t < p.count; ++t) trust[t] = trust_ratio<A>(p, t);
  for_each_chunk(p, [&](int32_t chunk) {
    const LambChunk<P, S> part(p, chunk);
    part.step(trust[part.index]);
  });
}

}  // namespace

void lamb(const OptimParams& p) {
  if (p.found_inf != nullptr && *p.found_inf != 0) return;
  visit_float(p.dtype, [&](auto tag) {
    using P = decltype(tag);
    if constexpr (sizeof(P) <= sizeof(float)) {
      if (p.state_dtype == DType::kUInt8) return lamb_step<P, Code8>(p);
    }
    lamb_step<P, acc_t<P>>(p);
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(lamb, OptimParams)
