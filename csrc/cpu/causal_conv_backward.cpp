// The backward pass of the causal convolutions on the CPU. With g the gradient of the pre-activation, which is computed
// again from the input:
//   grad_x[s] = sum over k of weight[k] * g[s + (width - 1) - k]
//   grad_weight[k] = sum over t of g[t] * x[t - (width - 1) + k]
// A slab needs the next one's first g's as well, and computes them itself.

#include "cpu/causal_conv.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// ---- positions are neighbours ----

template <class T>
class LineScratch {
 public:
  using A = acc_t<T>;
  static constexpr int64_t kRoom = kConvSlab + 2 * kMaxConvWidth;

  LineScratch() : room_(3 * kRoom) {}
  A* x() const { return room_.data(); }
  A* g() const { return room_.data() + kRoom; }
  A* other() const { return room_.data() + 2 * kRoom; }

 private:
  Scratch<A> room_;
};

// What the final state gives to the gradient of x[t]; t < 0 for the initial state's elements.
template <class T>
acc_t<T> final_grad(const CausalConvBackwardParams& p, int64_t n, int64_t c, int64_t t) {
  const int64_t j = t - (p.shape.length - (p.shape.width - 1));
  if (p.grad_final_state.data == nullptr || j < 0) return 0;
  return to_acc(static_cast<const T*>(p.grad_final_state.data)[p.grad_final_state.offset(n, c, j)]);
}

// g of the slab and of width - 1 positions after it, which are 0 past the sequence's end; and the slab's sums.
template <class T, int kWidth>
void line_grads(const CausalConvBackwardParams& p, const ConvLine& line, const LineScratch<T>& scratch) {
  using A = acc_t<T>;
  const CausalConvShape& s = p.shape;
  const auto [slab, n, c, first, positions] = line;
  const int64_t width = kWidth == 0 ? s.width : kWidth, end = first + positions;
  const int64_t last = end + width - 1 < s.length ? end + width - 1 : s.length;
  const Taps<T> taps(p.weight, p.bias, width, c);
  const A* x = widened_line<T>(p.input, p.initial_state, width, n, c, first - (width - 1), last, scratch.x());
  const A* grad = widened_line<T>(p.grad_output, Sequences{}, width, n, c, first, last, scratch.other());
  const auto at = [&](int64_t i, auto size) {
    const Vec<A> given = load(grad + i, size);
    if (!s.silu) return given;
    const auto value = [&](int64_t k) { return load(x + i + k, size); };
    const Vec<A> preact = tap_sum<kWidth>(splat(taps.bias), taps.weight, width, value);
    return given * fast_activation_grad<kNarrow<T>>(Activation::kSilu, preact);
  };
  A* g = scratch.g();
  // Some vectors are added up before they join the total, which is closer than one after the other.
  constexpr int64_t kStep = kPartialsStep * kLanes<A>;
  constexpr int kSums = kWidth == 0 ? 1 : kWidth;
  Vec<A> weight_sums[kSums]{}, bias_sum{};
  for (int64_t start = 0; start < positions; start += kStep) {
    Vec<A> weight_part[kSums]{}, bias_part{};
    for_each_vector<A>(positions - start < kStep ? positions - start : kStep, [&](int64_t i, auto size) {
      const Vec<A> value = at(start + i, size);
      store(g + start + i, value, size);
      bias_part += value;
      for (int64_t k = 0; k < kWidth; ++k) weight_part[k] += value * load(x + start + i + k, size);
    });
    bias_sum += bias_part;
    for (int64_t k = 0; k < kWidth; ++k) weight_sums[k] += weight_part[k];
  }
  for_each_vector<A>(last - end,
                     [&](int64_t i, auto size) { store(g + positions + i, at(positions + i, size), size); });
  for (int64_t i = last - first; i < positions + width - 1; ++i) g[i] = 0;
  if (p.bias_partials != nullptr) {
    static_cast<A*>(p.bias_partials)[slab * s.channels + c] = reduce_add<A>(bias_sum);
  }
  if (p.weight_partials == nullptr) return;
  A* partials = static_cast<A*>(p.weight_partials) + (slab * s.channels + c) * width;
  for (int64_t k = 0; k < kWidth; ++k) partials[k] = reduce_add<A>(weight_sums[k]);
  for (int64_t k = 0; kWidth == 0 && k < width; ++k) {
    const auto term = [&](int64_t i, auto size) { return load(g + i, size) * load(x + i + k, size); };
    partials[k] = sum_vectors<A>(positions, term);
  }
}

template <class T, int kWidth>
void backward_line(const CausalConvBackwardParams& p, const ConvLine& line, const LineScratch<T>& scratch) {
  using A = acc_t<T>;
  const CausalConvShape& s = p.shape;
  const auto [slab, n, c, first, positions] = line;
  const int64_t before = s.width - 1;
  line_grads<T, kWidth>(p, line, scratch);
  const Taps<T> taps(p.weight, nullptr, s.width, c);
  const A* g = scratch.g();
  const auto one = [&](int64_t i) {
    A sum = final_grad<T>(p, n, c, first + i);
    for (int64_t k = 0; k < s.width && i + before - k >= 0; ++k) sum += taps.weight[k] * g[i + before - k];
    return from_acc<T>(sum);
  };
  if (p.grad_initial_state.data != nullptr && first == 0) {
    T* state = static_cast<T*>(p.grad_initial_state.data);
    for (int64_t j = 0; j < before; ++j) state[p.grad_initial_state.offset(n, c, j)] = one(j - before);
  }
  if (p.grad_input.data == nullptr) return;
  T* out = static_cast<T*>(p.grad_input.data) + p.grad_input.offset(n, c, first);
  const auto value = [&](int64_t i, auto size) {
    const auto at = [&](int64_t k) { return load(g + i + before - k, size); };
    return tap_sum<kWidth>(Vec<A>{}, taps.weight, s.width, at);
  };
  if (p.grad_input.position == 1) {
    write_vectors<A>(out, positions, value);
  } else {
    write_vectors<A>(scratch.other(), positions, value);
    for (int64_t i = 0; i < positions; ++i) out[i * p.grad_input.position] = from_acc<T>(scratch.other()[i]);
  }
  if (p.grad_final_state.data == nullptr) return;
  const int64_t seen = s.length - before - first;  // From here on the final state has a gradient too.
  for (int64_t i = seen < 0 ? 0 : seen; i < positions; ++i) out[i * p.grad_input.position] = one(i);
}

// ---- channels are neighbours ----

template <class T, int kWidth>
class UnitBackward {
 public:
  using A = acc_t<T>;

  explicit UnitBackward(const CausalConvBackwardParams& p)
      : p_(p),
        width_(p.shape.width),
        ring_rows_(kConvRows + width_ - 1),
        x_(p.input, p.initial_state, width_, ring_rows_),
        grads_(p.grad_output, Sequences{}, width_, kConvRows),
        taps_((width_ + 1) * kConvTile),
        sums_((width_ + 1) * kConvTile),
        ring_(ring_rows_ * kConvTile),
        final_((width_ - 1) * kConvTile),
        states_((width_ - 1) * kConvTile) {}

  void run(const ConvUnit& unit) {
    unit_ = &unit;
    x_.start(unit);
    grads_.start(unit);
    gather_taps<T>(unit, p_.weight, p_.bias, width_, taps_.data());
    for (int64_t i = 0; i < (width_ + 1) * kConvTile; ++i) sums_.data()[i] = 0;
    for (int64_t i = 0; i < ring_rows_ * kConvTile; ++i) ring_.data()[i] = 0;
    gather_final();
    const int64_t end = unit.first + unit.positions, last = end + width_ - 1;
    int64_t t = unit.first;
    for (; t + kConvRows <= end; t += kConvRows) rows<kConvRows>(t, true);
    for (; t < end; ++t) rows<1>(t, true);
    for (; t < last; ++t) rows<1>(t, false);
    write_sums();
    if (unit.first == 0) write_states();
  }

 private:
  int64_t width() const { return kWidth == 0 ? width_ : kWidth; }
  // Where g of position t lies; of the width - 1 positions before the slab it is 0.
  A* ring_row(int64_t t) const { return ring_.data() + (t - unit_->first + ring_rows_) % ring_rows_ * kConvTile; }

  void gather_final() {
    if (p_.grad_final_state.data == nullptr) return;
    const T* grad = static_cast<const T*>(p_.grad_final_state.data);
    for (int64_t j = 0; j < width_ - 1; ++j) {
      for (int64_t c = 0; c < unit_->width; ++c) {
        final_.data()[j * kConvTile + c] = to_acc(grad[p_.grad_final_state.offset(unit_->n, unit_->channel + c, j)]);
      }
    }
  }
  // What the final state gives to the gradients of x[s], or null for nothing.
  const A* final_row(int64_t s) const {
    const int64_t j = s - (p_.shape.length - (width_ - 1));
    return p_.grad_final_state.data == nullptr || j < 0 || j >= width_ - 1 ? nullptr : final_.data() + j * kConvTile;
  }

  // Where the gradient of x[s] goes, or null where another unit makes it or nobody wants it.
  T* target(int64_t s) const {
    if (s < 0) return states_.data() + (s + width_ - 1) * kConvTile;
    if (s < unit_->first || s >= p_.shape.length || p_.grad_input.data == nullptr) return nullptr;
    return static_cast<T*>(p_.grad_input.data) + p_.grad_input.offset(unit_->n, unit_->channel, s);
  }

  // g of kRows positions from `t` on, and with them the gradients of x for the positions width - 1 before.
  template <int kRows>
  void rows(int64_t t, bool own) {
    const int64_t before = width() - 1;
    const bool there = t < p_.shape.length;
    const T *x[kRows + kMaxConvWidth - 1]{}, *grads[kRows];
    const A *g_seen[kRows + kMaxConvWidth - 1], *finals[kRows];
    A* g_rows[kRows];
    T* targets[kRows];
    for (int64_t r = 0; there && r < kRows + before; ++r) x[r] = x_.row(t + r - before, r);
    for (int64_t r = 0; r < kRows + before; ++r) g_seen[r] = ring_row(t + r - before);
    for (int r = 0; r < kRows; ++r) {
      grads[r] = there ? grads_.row(t + r, r) : nullptr;
      g_rows[r] = ring_row(t + r);
      targets[r] = target(t + r - before);
      finals[r] = final_row(t + r - before);
    }
    for_each_vector<A>(unit_->width, [&](int64_t i, auto size) {
      Vec<A> g[kRows]{};
      if (there) grads_of<kRows>(x, grads, i, size, g);
      for (int r = 0; r < kRows; ++r) store(g_rows[r] + i, g[r], size);
      if (own) add_sums<kRows>(x, g, i, size);
      for (int r = 0; r < kRows; ++r) {
        if (targets[r] == nullptr) continue;
        Vec<A> sum = finals[r] == nullptr ? Vec<A>{} : load(finals[r] + i, size);
        for (int64_t k = 0; k <= before; ++k) {
          sum += load(taps_.data() + k * kConvTile + i, size) * load(g_seen[before + r - k] + i, size);
        }
        store(targets[r] + i, sum, size);
      }
    });
  }

  template <int kRows, class Size>
  void grads_of(const T* const* x, const T* const* grads, int64_t i, Size size, Vec<A>* g) const {
    for (int r = 0; r < kRows; ++r) g[r] = load(grads[r] + i, size);
    if (!p_.shape.silu) return;
    Vec<A> preacts[kRows];
    for (int r = 0; r < kRows; ++r) preacts[r] = load(taps_.data() + width() * kConvTile + i, size);
    for (int64_t k = 0; k < width(); ++k) {
      const Vec<A> weight = load(taps_.data() + k * kConvTile + i, size);
      for (int r = 0; r < kRows; ++r) preacts[r] += weight * load(x[r + k] + i, size);
    }
    for (int r = 0; r < kRows; ++r) g[r] *= fast_activation_grad<kNarrow<T>>(Activation::kSilu, preacts[r]);
  }

  template <int kRows, class Size>
  void add_sums(const T* const* x, const Vec<A>* g, int64_t i, Size size) {
    for (int64_t k = 0; k <= width(); ++k) {
      A* sums = sums_.data() + k * kConvTile + i;
      Vec<A> sum{};
      for (int r = 0; r < kRows; ++r) sum += k < width() ? g[r] * load(x[r + k] + i, size) : g[r];
      store(sums, load(sums, size) + sum, size);
    }
  }

  void write_sums() const {
    const int64_t at = unit_->slab * p_.shape.channels + unit_->channel;
    for (int64_t c = 0; c < unit_->width; ++c) {
      if (p_.bias_partials != nullptr) {
        static_cast<A*>(p_.bias_partials)[at + c] = sums_.data()[width_ * kConvTile + c];
      }
      for (int64_t k = 0; p_.weight_partials != nullptr && k < width_; ++k) {
        static_cast<A*>(p_.weight_partials)[(at + c) * width_ + k] = sums_.data()[k * kConvTile + c];
      }
    }
  }

  void write_states() const {
    if (p_.grad_initial_state.data == nullptr) return;
    T* state = static_cast<T*>(p_.grad_initial_state.data);
    for (int64_t j = 0; j < width_ - 1; ++j) {
      for (int64_t c = 0; c < unit_->width; ++c) {
        state[p_.grad_initial_state.offset(unit_->n, unit_->channel + c, j)] = states_.data()[j * kConvTile + c];
      }
    }
  }

  const CausalConvBackwardParams& p_;
  int64_t width_, ring_rows_;
  ConvRows<T> x_, grads_;
  Scratch<A> taps_, sums_, ring_, final_;
  Scratch<T> states_;
  const ConvUnit* unit_ = nullptr;
};

}  // namespace

void causal_conv_backward(const CausalConvBackwardParams& p) {
  visit_float(p.shape.dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = acc_t<T>;
    const CausalConvShape& s = p.shape;
    visit_width<T>(s.width, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      if (s.channels_last) {
        return over_units(s, [&](int64_t begin, int64_t end) {
          UnitBackward<T, kWidth> backward(p);
          for (int64_t index = begin; index < end; ++index) backward.run(ConvUnit(s, index));
        });
      }
      over_lines(s, [&](int64_t begin, int64_t end) {
        const LineScratch<T> scratch;
        for (int64_t index = begin; index < end; ++index) backward_line<T, kWidth>(p, ConvLine(s, index), scratch);
      });
    });
    const A *weights = static_cast<const A*>(p.weight_partials), *biases = static_cast<const A*>(p.bias_partials);
    if (p.grad_weight != nullptr) {
      reduce_partials<T>(weights, s.slabs(), s.channels * s.width, static_cast<T*>(p.grad_weight));
    }
    if (p.grad_bias != nullptr) {
      reduce_partials<T>(biases, s.slabs(), s.channels, static_cast<T*>(p.grad_bias));
    }
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(causal_conv_backward, CausalConvBackwardParams)
