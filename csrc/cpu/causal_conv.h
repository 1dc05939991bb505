// What both passes of the causal convolutions share: lines of a row's values and rows of channels, found where they lie
// or gathered, with what came before them.

#pragma once

#include <type_traits>

#include "cpu/fast_math.h"
#include "cpu/partials.h"
#include "kernels/causal_conv.h"

WARPWRIGHT_ISA_BEGIN

// Channels that are taken together where they are neighbours: the rows under the taps stay in the first-level cache.
inline constexpr int64_t kConvTile = 256;
// Positions that are taken together there: weights are loaded once for all of them.
inline constexpr int kConvRows = 4;

// Calls f with an integral_constant: the width, where kernels are made for it, else 0. float64 is for gradient checks.
template <class T, class F>
void visit_width(int64_t width, const F& f) {
  if constexpr (!std::is_same_v<T, double>) {
    if (width == 2) return f(std::integral_constant<int, 2>{});
    if (width == 3) return f(std::integral_constant<int, 3>{});
    if (width == 4) return f(std::integral_constant<int, 4>{});
  }
  f(std::integral_constant<int, 0>{});
}

// x[t] of a channel, also before its first input.
template <class T>
inline T sequence_value(const Sequences& input, const Sequences& state, int64_t width, int64_t n, int64_t c,
                        int64_t t) {
  if (t >= 0) return static_cast<const T*>(input.data)[input.offset(n, c, t)];
  if (state.data == nullptr) return from_acc<T>(0);
  return static_cast<const T*>(state.data)[state.offset(n, c, t + width - 1)];
}

// x[first], ..., x[last - 1] of a channel, widened: where they lie, if they can be read so, or gathered into `line`.
template <class T>
const acc_t<T>* widened_line(const Sequences& input, const Sequences& state, int64_t width, int64_t n, int64_t c,
                             int64_t first, int64_t last, acc_t<T>* line) {
  using A = acc_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    if (input.position == 1 && first >= 0) return static_cast<const T*>(input.data) + input.offset(n, c, first);
  }
  const int64_t inputs = first < 0 ? 0 : first;
  A* to = line;
  for (int64_t t = first; t < inputs && t < last; ++t) *to++ = to_acc(sequence_value<T>(input, state, width, n, c, t));
  if (inputs >= last) return line;
  const T* from = static_cast<const T*>(input.data) + input.offset(n, c, inputs);
  if (input.position == 1) {
    for_each_vector<A>(last - inputs, [&](int64_t i, auto count) { store(to + i, load(from + i, count), count); });
  } else {
    for (int64_t i = 0; i < last - inputs; ++i) to[i] = to_acc(from[i * input.position]);
  }
  return line;
}

// A row's weights and bias, widened.
template <class T>
struct Taps {
  acc_t<T> weight[kMaxConvWidth], bias;

  Taps(const void* weights, const void* biases, int64_t width, int64_t c)
      : bias(biases == nullptr ? acc_t<T>(0) : to_acc(static_cast<const T*>(biases)[c])) {
    for (int64_t k = 0; k < width; ++k) weight[k] = to_acc(static_cast<const T*>(weights)[c * width + k]);
  }
};

// The sum of weight[k] * x[i + k], from `start` on. The order does not depend on the path: steps and halves of a
// sequence give the bits of the whole.
template <int kWidth, class A, class Load>
inline Vec<A> tap_sum(Vec<A> start, const A* weight, int64_t width, const Load& x) {
  const int64_t taps = kWidth == 0 ? width : kWidth;
  for (int64_t k = 0; k < taps; ++k) start += weight[k] * x(k);
  return start;
}

template <class T>
inline Vec<acc_t<T>> silu_or_same(bool silu, Vec<acc_t<T>> preact) {
  return silu ? fast_activate<kNarrow<T>>(Activation::kSilu, preact) : preact;
}

// A slab of one channel, where positions are neighbours in memory.
struct ConvLine {
  int64_t slab, n, channel, first, positions;

  ConvLine(const CausalConvShape& shape, int64_t index) {
    const int64_t per_sample = shape.per_sample(), row = index / per_sample;
    n = row / shape.channels;
    channel = row % shape.channels;
    slab = n * per_sample + index % per_sample;
    first = index % per_sample * shape.slab();
    positions = shape.slab_positions(first);
  }
};

// Calls f(begin, end) on parts of all lines, on several threads.
template <class F>
void over_lines(const CausalConvShape& shape, const F& f) {
  const int64_t longest = shape.length < shape.slab() ? shape.length : shape.slab();
  parallel_for(0, shape.slabs() * shape.channels, row_grain(longest), f);
}

// Some neighbouring channels of a slab, where channels are neighbours in memory.
struct ConvUnit {
  int64_t slab, n, first, positions, channel, width;

  ConvUnit(const CausalConvShape& shape, int64_t unit) {
    const int64_t tiles = (shape.channels + kConvTile - 1) / kConvTile;
    slab = unit / tiles;
    n = slab / shape.per_sample();
    first = slab % shape.per_sample() * shape.slab();
    positions = shape.slab_positions(first);
    channel = unit % tiles * kConvTile;
    width = shape.channels - channel < kConvTile ? shape.channels - channel : kConvTile;
  }
  static int64_t count(const CausalConvShape& shape) {
    return shape.slabs() * ((shape.channels + kConvTile - 1) / kConvTile);
  }
};

template <class F>
void over_units(const CausalConvShape& shape, const F& f) {
  const int64_t longest = shape.length < shape.slab() ? shape.length : shape.slab();
  const int64_t widest = shape.channels < kConvTile ? shape.channels : kConvTile;
  parallel_for(0, ConvUnit::count(shape), row_grain(longest * widest), f);
}

// Rows of a unit's channels: where they lie, or gathered, if they have gaps or come before the first input.
template <class T>
class ConvRows {
 public:
  // At most `held` rows are in use at a time.
  ConvRows(const Sequences& input, const Sequences& state, int64_t width, int64_t held)
      : input_(input), state_(state), width_(width), room_(held * kConvTile) {}

  void start(const ConvUnit& unit) { unit_ = &unit; }
  // x[t] of the channels; `place` says which of the rows in use this is.
  const T* row(int64_t t, int64_t place) const {
    if (t >= 0 && input_.channel == 1) {
      return static_cast<const T*>(input_.data) + input_.offset(unit_->n, unit_->channel, t);
    }
    T* row = room_.data() + place * kConvTile;
    for (int64_t c = 0; c < unit_->width; ++c) {
      row[c] = sequence_value<T>(input_, state_, width_, unit_->n, unit_->channel + c, t);
    }
    return row;
  }

 private:
  const Sequences input_, state_;
  int64_t width_;
  Scratch<T> room_;
  const ConvUnit* unit_ = nullptr;
};

// The unit's weights, tap by tap, then its biases.
template <class T>
void gather_taps(const ConvUnit& unit, const void* weights, const void* biases, int64_t width, acc_t<T>* taps) {
  const T* weight = static_cast<const T*>(weights) + unit.channel * width;
  for (int64_t c = 0; c < unit.width; ++c) {
    for (int64_t k = 0; k < width; ++k) taps[k * kConvTile + c] = to_acc(weight[c * width + k]);
    taps[width * kConvTile + c] =
        biases == nullptr ? acc_t<T>(0) : to_acc(static_cast<const T*>(biases)[unit.channel + c]);
  }
}

WARPWRIGHT_ISA_END
