// Group, batch and instance norm on the CPU: statistics of the slabs, of the cells, then the output.

#include "cpu/channel_norm.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// Of one channel: the mean, then the squared differences to it. The mean of squares less the square of the mean loses
// every digit when the mean is large. The mean itself is that of the differences to the first value, since sums of
// large numbers would cost it some, and then of what is left when that is subtracted: its own rounding, which would be
// in each of the differences that the gradient of weight adds up.
template <class T>
void line_statistics(const T* x, int64_t count, acc_t<T>* mean, acc_t<T>* squares) {
  using A = acc_t<T>;
  const A first = to_acc(x[0]);
  const A center =
      first + sum_vectors<A>(count, [&](int64_t i, auto n) { return load(x + i, n, first) - first; }) / A(count);
  Vec<A> rest{};
  *squares = sum_vectors<A>(count, [&](int64_t i, auto n) {
    const Vec<A> d = load(x + i, n, center) - center;  // Lanes past the end hold the mean: they add nothing.
    rest += d;
    return d * d;
  });
  *mean = center + reduce_add<A>(rest) / A(count);
}

// Joins rows, kTileRows of them or fewer, to the statistics of the `before` rows in front of them (Chan, Golub and
// LeVeque, 1979), all less `shift`.
template <class T, class Count>
void join_rows(const Lines<T>& x, int64_t before, Count rows, int64_t width, const acc_t<T>* shift, acc_t<T>* mean,
               acc_t<T>* squares) {
  using A = acc_t<T>;
  const A share = A(rows) / A(before + rows), weight = A(before) * share;
  for_each_vector<A>(width, [&](int64_t i, auto n) {
    const Vec<A> less = load(shift + i, n);
    Vec<A> values[kTileRows], total{}, square{};
    for (int r = 0; r < rows; ++r) total += values[r] = load(x.line(before + r) + i, n) - less;
    const Vec<A> center = total * (A(1) / A(rows));
    for (int r = 0; r < rows; ++r) square += (values[r] - center) * (values[r] - center);
    const Vec<A> old = load(mean + i, n), delta = center - old;
    store(mean + i, old + delta * share, n);
    store(squares + i, load(squares + i, n) + square + delta * delta * weight, n);
  });
}

// Of neighbouring channels, like line_statistics: what is near the mean, that of the first rows, is subtracted first,
// so that sums are small and rounded little.
template <class T>
void row_statistics(const Lines<T>& x, int64_t positions, int64_t width, acc_t<T>* mean, acc_t<T>* squares) {
  using A = acc_t<T>;
  A shift[kUnitChannels];
  const int64_t first = positions < kTileRows ? positions : kTileRows;
  for_each_vector<A>(width, [&](int64_t i, auto n) {
    Vec<A> total{};
    for (int64_t r = 0; r < first; ++r) total += load(x.line(r) + i, n);
    store(shift + i, total * (A(1) / A(first)), n);
  });
  for (int64_t i = 0; i < width; ++i) mean[i] = squares[i] = 0;
  int64_t row = 0;
  for (; row + kTileRows <= positions; row += kTileRows) {
    join_rows(x, row, std::integral_constant<int, kTileRows>{}, width, shift, mean, squares);
  }
  if (row < positions) join_rows(x, row, static_cast<int>(positions - row), width, shift, mean, squares);
  for_each_vector<A>(width, [&](int64_t i, auto n) { store(mean + i, load(mean + i, n) + load(shift + i, n), n); });
}

template <class T>
void unit_statistics(const ChannelNormParams& p, const Unit& unit, const Lines<T>& x) {
  using A = acc_t<T>;
  const int64_t at = unit.slab * p.shape.channels + unit.channel;
  A* mean = static_cast<A*>(p.mean_partials) + at;
  A* squares = static_cast<A*>(p.square_partials) + at;
  if (!p.shape.channels_last) return line_statistics(x.data, unit.positions, mean, squares);
  row_statistics(x, unit.positions, unit.width, mean, squares);
}

// A cell's statistics out of its slabs', or the running ones. In double: there are few.
template <class T>
void cell_statistics(const ChannelNormParams& p, int64_t cell) {
  using A = acc_t<T>;
  const ChannelShape& s = p.shape;
  double mean = 0, var = 0;
  if (p.constant) {
    mean = channel_value<T>(p.running_mean, cell, 0);
    var = channel_value<T>(p.running_var, cell, 0);
  } else {
    const A* means = static_cast<const A*>(p.mean_partials);
    const A* squares = static_cast<const A*>(p.square_partials);
    const int64_t first = s.cell_first_slab(cell), channel = s.cell_first_channel(cell);
    const auto sum = [&](const auto& term) {
      double total = 0;
      for (int64_t slab = first; slab < first + s.cell_slabs(); ++slab) {
        const double count = static_cast<double>(s.slab_positions(slab));
        for (int64_t c = channel; c < channel + s.group_channels(); ++c) total += term(count, slab * s.channels + c);
      }
      return total / static_cast<double>(s.cell_elements());
    };
    mean = sum([&](double count, int64_t i) { return count * means[i]; });
    var = sum([&](double count, int64_t i) { return squares[i] + count * (means[i] - mean) * (means[i] - mean); });
  }
  const double elements = static_cast<double>(s.cell_elements());
  if (p.moments != nullptr) {
    A* moments = static_cast<A*>(p.moments) + cell;
    moments[0] = static_cast<A>(elements > 0 ? mean : 0);
    moments[s.channels] = static_cast<A>(elements > 0 ? var : 0);
    moments[2 * s.channels] = static_cast<A>(elements);
    return;
  }
  static_cast<A*>(p.mean)[cell] = static_cast<A>(mean);
  static_cast<A*>(p.rstd)[cell] = static_cast<A>(1 / ::sqrt(var + p.eps));
  move_running<T>(p.running_mean, p.new_mean, cell, p.momentum, mean);
  move_running<T>(p.running_var, p.new_var, cell, p.momentum, var * (elements / (elements - 1)));
}

// (x - mean) * scale + shift: the mean first, so that a large one costs no digits.
template <class T>
struct Coefficients {
  using A = acc_t<T>;
  A mean, scale, shift;

  Coefficients(const ChannelNormParams& p, const Unit& unit, int64_t channel) {
    const int64_t cell = cell_of(p.shape, unit, channel);
    mean = static_cast<const A*>(p.mean)[cell];
    scale = static_cast<const A*>(p.rstd)[cell] * channel_value<T>(p.weight, channel, 1);
    shift = channel_value<T>(p.bias, channel, 0);
  }
};

template <Activation kActivation, class T>
void unit_output_lines(const ChannelNormParams& p, const Unit& unit, const Lines<T>& x, const Lines<T>& residual) {
  using A = acc_t<T>;
  T* output = unit_output<T>(p.output, unit);
  const auto line = [&](int64_t row, int64_t count, const auto& mean, const auto& scale, const auto& shift) {
    const T* in = x.line(row);
    T* out = output + row * p.output.position;
    for_each_vector<A>(count, [&](int64_t i, auto n) {
      Vec<A> y = (load(in + i, n) - mean(i, n)) * scale(i, n) + shift(i, n);
      if (residual.data != nullptr) y += load(residual.line(row) + i, n);
      store(out + i, fast_activate<kNarrow<T>>(kActivation, y), n);
    });
  };
  if (!p.shape.channels_last) {
    const Coefficients<T> c(p, unit, unit.channel);
    const auto constant = [](A value) { return [value](int64_t, auto) { return splat(value); }; };
    return line(0, unit.positions, constant(c.mean), constant(c.scale), constant(c.shift));
  }
  A mean[kUnitChannels], scale[kUnitChannels], shift[kUnitChannels];
  for (int64_t i = 0; i < unit.width; ++i) {
    const Coefficients<T> c(p, unit, unit.channel + i);
    mean[i] = c.mean;
    scale[i] = c.scale;
    shift[i] = c.shift;
  }
  const auto from = [](const A* values) { return [values](int64_t i, auto n) { return load(values + i, n); }; };
  for (int64_t row = 0; row < unit.positions; ++row) line(row, unit.width, from(mean), from(scale), from(shift));
}

template <class T>
void all_unit_statistics(const ChannelNormParams& p) {
  over_units(p.shape, [&] {
    return
        [&p, input = LineReader<T>(p.input, p.shape)](const Unit& unit) { unit_statistics(p, unit, input.read(unit)); };
  });
}

template <class T>
void all_cell_statistics(const ChannelNormParams& p) {
  const int64_t parts = p.constant ? 1 : p.shape.cell_slabs() * p.shape.group_channels();
  parallel_for(0, p.shape.cells(), row_grain(parts), [&](int64_t begin, int64_t end) {
    for (int64_t cell = begin; cell < end; ++cell) cell_statistics<T>(p, cell);
  });
}

template <Activation kActivation, class T>
void forward(const ChannelNormParams& p) {
  const ChannelShape& s = p.shape;
  const bool own = !p.constant;
  if (own && cell_by_cell(s)) {
    parallel_for(0, s.cells(), row_grain(s.cell_elements()), [&](int64_t begin, int64_t end) {
      const LineReader<T> input(p.input, s), residual(p.residual, s);
      for (int64_t cell = begin; cell < end; ++cell) {
        over_units_of_cell(s, cell, [&](const Unit& unit) { unit_statistics(p, unit, input.read(unit)); });
        cell_statistics<T>(p, cell);
        over_units_of_cell(s, cell, [&](const Unit& unit) {
          unit_output_lines<kActivation>(p, unit, input.read(unit), residual.read(unit));
        });
      }
    });
    return;
  }
  if (own) all_unit_statistics<T>(p);
  all_cell_statistics<T>(p);
  over_units(s, [&] {
    return [&p, input = LineReader<T>(p.input, p.shape), residual = LineReader<T>(p.residual, p.shape)](
               const Unit& unit) { unit_output_lines<kActivation>(p, unit, input.read(unit), residual.read(unit)); };
  });
}

}  // namespace

void channel_norm_forward(const ChannelNormParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    visit_norm_activation(p.activation, [&](auto activation) { forward<activation(), decltype(tag)>(p); });
  });
}

void channel_norm_moments(const ChannelNormParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    all_unit_statistics<decltype(tag)>(p);
    all_cell_statistics<decltype(tag)>(p);
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(channel_norm_forward, ChannelNormParams)
WARPWRIGHT_CPU_LAUNCHER(channel_norm_moments, ChannelNormParams)
