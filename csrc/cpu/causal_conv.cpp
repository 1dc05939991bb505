// Causal convolutions on the CPU. Where positions are neighbours a slab of one channel is taken at a time, a vector of
// positions after the other; where channels are, a few positions of a tile of channels, so that memory is read row by
// row. Sixteen bits are widened once. The taps are summed in one order everywhere.

#include "cpu/causal_conv.h"

WARPWRIGHT_ISA_BEGIN

namespace {

template <class T, int kWidth>
void forward_line(const CausalConvParams& p, const ConvLine& line, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const CausalConvShape& s = p.shape;
  const auto [slab, n, c, first, count] = line;
  const Taps<T> taps(p.weight, p.bias, s.width, c);
  const int64_t from = first - (s.width - 1);
  const A* x = widened_line<T>(p.input, p.initial_state, s.width, n, c, from, first + count, scratch);
  const auto value = [&](int64_t i, auto size) {
    const auto at = [&](int64_t k) { return load(x + i + k, size); };
    return silu_or_same<T>(s.silu, tap_sum<kWidth>(splat(taps.bias), taps.weight, s.width, at));
  };
  T* output = static_cast<T*>(p.output.data) + p.output.offset(n, c, first);
  if (p.output.position == 1) return write_vectors<A>(output, count, value);
  A* y = scratch + kMaxConvWidth + kConvSlab;
  write_vectors<A>(y, count, value);
  for (int64_t i = 0; i < count; ++i) output[i * p.output.position] = from_acc<T>(y[i]);
}

// kRows positions from `t` on.
template <class T, int kWidth, int kRows>
void forward_rows(const CausalConvParams& p, const ConvUnit& unit, const ConvRows<T>& rows, const acc_t<T>* taps,
                  int64_t t) {
  using A = acc_t<T>;
  const int64_t width = kWidth == 0 ? p.shape.width : kWidth;
  const T* x[kRows + kMaxConvWidth - 1];
  for (int64_t r = 0; r < kRows + width - 1; ++r) x[r] = rows.row(t + r - (width - 1), r);
  T* out = static_cast<T*>(p.output.data) + p.output.offset(unit.n, unit.channel, t);
  for_each_vector<A>(unit.width, [&](int64_t i, auto size) {
    Vec<A> sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = load(taps + width * kConvTile + i, size);
    for (int64_t k = 0; k < width; ++k) {
      const Vec<A> weight = load(taps + k * kConvTile + i, size);
      for (int r = 0; r < kRows; ++r) sums[r] += weight * load(x[r + k] + i, size);
    }
    for (int r = 0; r < kRows; ++r) {
      store(out + r * p.output.position + i, silu_or_same<T>(p.shape.silu, sums[r]), size);
    }
  });
}

template <class T, int kWidth>
void forward_units(const CausalConvParams& p, int64_t begin, int64_t end) {
  ConvRows<T> rows(p.input, p.initial_state, p.shape.width, kConvRows + p.shape.width - 1);
  Scratch<acc_t<T>> taps((p.shape.width + 1) * kConvTile);
  for (int64_t index = begin; index < end; ++index) {
    const ConvUnit unit(p.shape, index);
    rows.start(unit);
    gather_taps<T>(unit, p.weight, p.bias, p.shape.width, taps.data());
    const int64_t last = unit.first + unit.positions;
    int64_t t = unit.first;
    for (; t + kConvRows <= last; t += kConvRows) forward_rows<T, kWidth, kConvRows>(p, unit, rows, taps.data(), t);
    for (; t < last; ++t) forward_rows<T, kWidth, 1>(p, unit, rows, taps.data(), t);
  }
}

template <class T>
void write_final_states(const CausalConvParams& p) {
  const CausalConvShape& s = p.shape;
  if (p.final_state.data == nullptr) return;
  parallel_for(0, s.batch * s.channels, kParallelGrain / s.width, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / s.channels, c = row % s.channels;
      T* state = static_cast<T*>(p.final_state.data);
      for (int64_t j = 0; j < s.width - 1; ++j) {
        state[p.final_state.offset(n, c, j)] =
            sequence_value<T>(p.input, p.initial_state, s.width, n, c, s.length - (s.width - 1) + j);
      }
    }
  });
}

// A vector of channels of one sequence. What it sees lies in `x` and what it makes in `y`, a vector for each position.
template <class T>
class ChannelStep {
 public:
  using A = acc_t<T>;
  static constexpr int64_t kChannels = kLanes<A>;

  explicit ChannelStep(const CausalConvUpdateParams& p)
      : p_(p), x_((p.width - 1 + p.steps) * kChannels), taps_((p.width + 1) * kChannels) {}

  void start(int64_t channel) {
    channel_ = channel;
    count_ = p_.channels - channel < kChannels ? p_.channels - channel : kChannels;
    const T *weight = static_cast<const T*>(p_.weight), *bias = static_cast<const T*>(p_.bias);
    for (int64_t c = 0; c < kChannels; ++c) {
      const bool there = c < count_;
      for (int64_t k = 0; k < p_.width; ++k) {
        taps_.data()[k * kChannels + c] = there ? to_acc(weight[(channel + c) * p_.width + k]) : A(0);
      }
      taps_.data()[p_.width * kChannels + c] = there && bias != nullptr ? to_acc(bias[channel + c]) : A(0);
    }
  }

  void run(int64_t n) {
    const int64_t slot = p_.slot(n), before = p_.width - 1;
    if (slot < 0 || slot >= p_.slots) {
      const A value = slot < 0 ? A(0) : std::numeric_limits<A>::quiet_NaN();
      for (int64_t step = 0; step < p_.steps; ++step) write(p_.output, n, step, splat(value));
      return;
    }
    for (int64_t j = 0; j < before; ++j) read(p_.state, slot, j, j);
    for (int64_t step = 0; step < p_.steps; ++step) read(p_.input, n, step, before + step);
    for (int64_t step = 0; step < p_.steps; ++step) {
      Vec<A> sum = load(taps_.data() + p_.width * kChannels);
      for (int64_t k = 0; k < p_.width; ++k) sum += load(taps_.data() + k * kChannels) * at(step + k);
      write(p_.output, n, step, silu_or_same<T>(p_.silu, sum));
    }
    for (int64_t j = 0; j < before; ++j) write(p_.state, slot, j, at(p_.steps + j));
  }

 private:
  Vec<A> at(int64_t position) const { return load(x_.data() + position * kChannels); }

  void read(const Sequences& from, int64_t n, int64_t position, int64_t to) {
    const T* data = static_cast<const T*>(from.data) + from.offset(n, channel_, position);
    A* x = x_.data() + to * kChannels;
    if (from.channel == 1) return store(x, load(data, count_));
    for (int64_t c = 0; c < kChannels; ++c) x[c] = c < count_ ? to_acc(data[c * from.channel]) : A(0);
  }
  void write(const Sequences& to, int64_t n, int64_t position, Vec<A> value) {
    T* data = static_cast<T*>(to.data) + to.offset(n, channel_, position);
    if (to.channel == 1) return store(data, value, count_);
    for (int64_t c = 0; c < count_; ++c) data[c * to.channel] = from_acc<T>(value[c]);
  }

  const CausalConvUpdateParams& p_;
  Scratch<A> x_, taps_;
  int64_t channel_ = 0, count_ = 0;
};

}  // namespace

void causal_conv_forward(const CausalConvParams& p) {
  visit_float(p.shape.dtype, [&](auto tag) {
    using T = decltype(tag);
    const CausalConvShape& s = p.shape;
    write_final_states<T>(p);
    if (s.length == 0) return;
    visit_width<T>(s.width, [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      if (s.channels_last) {
        return over_units(s, [&](int64_t begin, int64_t end) { forward_units<T, kWidth>(p, begin, end); });
      }
      over_lines(s, [&](int64_t begin, int64_t end) {
        Scratch<acc_t<T>> scratch(kMaxConvWidth + 2 * kConvSlab);
        for (int64_t index = begin; index < end; ++index) {
          forward_line<T, kWidth>(p, ConvLine(s, index), scratch.data());
        }
      });
    });
  });
}

void causal_conv_update(const CausalConvUpdateParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using Step = ChannelStep<decltype(tag)>;
    const int64_t blocks = (p.channels + Step::kChannels - 1) / Step::kChannels;
    const int64_t work = p.batch * (p.width + p.steps) * Step::kChannels;
    parallel_for(0, blocks, row_grain(work), [&](int64_t begin, int64_t end) {
      Step step(p);
      for (int64_t block = begin; block < end; ++block) {
        step.start(block * Step::kChannels);
        for (int64_t n = 0; n < p.batch; ++n) step.run(n);
      }
    });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(causal_conv_forward, CausalConvParams)
WARPWRIGHT_CPU_LAUNCHER(causal_conv_update, CausalConvUpdateParams)
