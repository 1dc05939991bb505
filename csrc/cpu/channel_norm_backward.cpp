// The gradients of group, batch and instance norm on the CPU. With z = xhat * weight + bias + residual, the gradient of
// z is g = grad_output * activation'(z), and
//   grad_weight = the sum of g * xhat,  grad_bias = the sum of g,  grad_residual = g,
//   grad_input  = rstd * (g * weight - mean(g * weight) - xhat * mean(g * weight * xhat)), the means over a cell.

#include "cpu/channel_norm.h"

WARPWRIGHT_ISA_BEGIN

namespace {

template <class T>
struct BackwardLines {
  Lines<T> grad, x, residual;
};

template <class T>
struct BackwardReaders {
  LineReader<T> grad, x, residual;

  explicit BackwardReaders(const ChannelNormBackwardParams& p)
      : grad(p.grad_output, p.shape), x(p.input, p.shape), residual(p.residual, p.shape) {}
  BackwardLines<T> read(const Unit& unit) const { return {grad.read(unit), x.read(unit), residual.read(unit)}; }
};

// What is the same at every position of a channel.
template <class A>
struct Channel {
  A mean, rstd, weight, bias, mean_grad, mean_dot;
};

template <class T>
Channel<acc_t<T>> channel_at(const ChannelNormBackwardParams& p, const Unit& unit, int64_t channel) {
  using A = acc_t<T>;
  const int64_t cell = cell_of(p.shape, unit, channel);
  return {static_cast<const A*>(p.mean)[cell],
          static_cast<const A*>(p.rstd)[cell],
          channel_value<T>(p.weight, channel, 1),
          channel_value<T>(p.bias, channel, 0),
          A(0),
          A(0)};
}

// The same for some neighbouring channels.
template <class A>
struct ChannelVector {
  Vec<A> mean, rstd, weight, bias, mean_grad, mean_dot;
};

// The same for the channels of a unit.
template <class T>
struct Channels {
  using A = acc_t<T>;
  A mean[kUnitChannels], rstd[kUnitChannels], weight[kUnitChannels], bias[kUnitChannels];

  Channels(const ChannelNormBackwardParams& p, const Unit& unit) {
    for (int64_t i = 0; i < unit.width; ++i) {
      const auto c = channel_at<T>(p, unit, unit.channel + i);
      mean[i] = c.mean;
      rstd[i] = c.rstd;
      weight[i] = c.weight;
      bias[i] = c.bias;
    }
  }
  template <class Count>
  ChannelVector<A> at(int64_t i, Count n) const {
    return {load(mean + i, n), load(rstd + i, n), load(weight + i, n), load(bias + i, n), Vec<A>{}, Vec<A>{}};
  }
};

template <class A>
struct Element {
  Vec<A> grad, xhat;  // Of z.
};

// `channel` is a Channel or a ChannelVector.
template <Activation kActivation, class T, class C, class Count>
Element<acc_t<T>> element(const BackwardLines<T>& lines, int64_t row, int64_t i, Count n, const C& channel) {
  using A = acc_t<T>;
  Element<A> e{load(lines.grad.line(row) + i, n), (load(lines.x.line(row) + i, n) - channel.mean) * channel.rstd};
  if constexpr (kActivation != Activation::kNone) {
    Vec<A> z = e.xhat * channel.weight + channel.bias;
    if (lines.residual.data != nullptr) z += load(lines.residual.line(row) + i, n);
    e.grad *= fast_activation_grad<kNarrow<T>>(kActivation, z);
  }
  return e;
}

// The sums of a channel's line. Lanes past the end add nothing: there the gradient is zero.
template <Activation kActivation, class T>
void line_sums(const ChannelNormBackwardParams& p, const Unit& unit, const BackwardLines<T>& lines, acc_t<T>* grads,
               acc_t<T>* dots) {
  using A = acc_t<T>;
  const auto channel = channel_at<T>(p, unit, unit.channel);
  constexpr int kSums = 2;  // In turn: a single one would wait for each of its additions.
  Vec<A> grad[kSums]{}, dot[kSums]{};
  const auto add = [&](int64_t i, auto n, int turn) {
    const Element<A> e = element<kActivation>(lines, 0, i, n, channel);
    grad[turn] += e.grad;
    dot[turn] += e.grad * e.xhat;
  };
  int64_t i = 0;
  for (; i + kSums * kLanes<A> <= unit.positions; i += kSums * kLanes<A>) {
    for (int turn = 0; turn < kSums; ++turn) add(i + turn * kLanes<A>, Whole{}, turn);
  }
  for_each_vector<A>(unit.positions - i, [&](int64_t rest, auto n) { add(i + rest, n, 0); });
  *grads = reduce_add<A>(grad[0] + grad[1]);
  *dots = reduce_add<A>(dot[0] + dot[1]);
}

template <Activation kActivation, class T>
void row_sums(const ChannelNormBackwardParams& p, const Unit& unit, const BackwardLines<T>& lines, acc_t<T>* grads,
              acc_t<T>* dots) {
  using A = acc_t<T>;
  const Channels<T> channels(p, unit);
  for (int64_t i = 0; i < unit.width; ++i) grads[i] = dots[i] = 0;
  for (int64_t row = 0; row < unit.positions; row += kTileRows) {
    const int64_t end = row + kTileRows < unit.positions ? row + kTileRows : unit.positions;
    for_each_vector<A>(unit.width, [&](int64_t i, auto n) {
      const auto channel = channels.at(i, n);
      Vec<A> grad{}, dot{};
      for (int64_t r = row; r < end; ++r) {
        const Element<A> e = element<kActivation>(lines, r, i, n, channel);
        grad += e.grad;
        dot += e.grad * e.xhat;
      }
      store(grads + i, load(grads + i, n) + grad, n);
      store(dots + i, load(dots + i, n) + dot, n);
    });
  }
}

template <Activation kActivation, class T>
void unit_sums(const ChannelNormBackwardParams& p, const Unit& unit, const BackwardLines<T>& lines) {
  using A = acc_t<T>;
  const int64_t at = unit.slab * p.shape.channels + unit.channel;
  A* grads = static_cast<A*>(p.grad_partials) + at;
  A* dots = static_cast<A*>(p.dot_partials) + at;
  if (p.shape.channels_last) return row_sums<kActivation>(p, unit, lines, grads, dots);
  line_sums<kActivation>(p, unit, lines, grads, dots);
}

template <class T>
void cell_means(const ChannelNormBackwardParams& p, int64_t cell) {
  using A = acc_t<T>;
  const ChannelShape& s = p.shape;
  double grad = 0, dot = 0;
  const int64_t first = s.cell_first_slab(cell), channel = s.cell_first_channel(cell);
  for (int64_t slab = first; slab < first + s.cell_slabs(); ++slab) {
    for (int64_t c = channel; c < channel + s.group_channels(); ++c) {
      const double weight = channel_value<T>(p.weight, c, 1);
      grad += weight * static_cast<const A*>(p.grad_partials)[slab * s.channels + c];
      dot += weight * static_cast<const A*>(p.dot_partials)[slab * s.channels + c];
    }
  }
  const double count = static_cast<double>(s.cell_elements());
  static_cast<A*>(p.mean_grad)[cell] = static_cast<A>(grad / count);
  static_cast<A*>(p.mean_dot)[cell] = static_cast<A>(dot / count);
}

template <Activation kActivation, class T>
void unit_grads(const ChannelNormBackwardParams& p, const Unit& unit, const BackwardLines<T>& lines) {
  using A = acc_t<T>;
  T* grad_input = unit_output<T>(p.grad_input, unit);
  T* grad_residual = unit_output<T>(p.grad_residual, unit);
  const auto write = [&](int64_t row, int64_t i, auto n, const auto& channel) {
    const Element<A> e = element<kActivation>(lines, row, i, n, channel);
    if (grad_residual != nullptr) store(grad_residual + row * p.grad_residual.position + i, e.grad, n);
    if (grad_input == nullptr) return;
    const Vec<A> dx = (e.grad * channel.weight - channel.mean_grad - e.xhat * channel.mean_dot) * channel.rstd;
    store(grad_input + row * p.grad_input.position + i, dx, n);
  };
  const auto add_means = [&](auto& mean_grad, auto& mean_dot, int64_t channel) {
    if (!p.needs_means()) return;
    const int64_t cell = cell_of(p.shape, unit, channel);
    mean_grad = static_cast<const A*>(p.mean_grad)[cell];
    mean_dot = static_cast<const A*>(p.mean_dot)[cell];
    if (p.elements == nullptr) return;
    const A share = channel_value<T>(p.weight, channel, 1) / static_cast<const A*>(p.elements)[cell];
    mean_grad *= share;
    mean_dot *= share;
  };
  if (!p.shape.channels_last) {
    auto channel = channel_at<T>(p, unit, unit.channel);
    add_means(channel.mean_grad, channel.mean_dot, unit.channel);
    for_each_vector<A>(unit.positions, [&](int64_t i, auto n) { write(0, i, n, channel); });
    return;
  }
  const Channels<T> channels(p, unit);
  A mean_grad[kUnitChannels]{}, mean_dot[kUnitChannels]{};
  for (int64_t i = 0; i < unit.width; ++i) add_means(mean_grad[i], mean_dot[i], unit.channel + i);
  for (int64_t row = 0; row < unit.positions; ++row) {
    for_each_vector<A>(unit.width, [&](int64_t i, auto n) {
      auto channel = channels.at(i, n);
      channel.mean_grad = load(mean_grad + i, n);
      channel.mean_dot = load(mean_dot + i, n);
      write(row, i, n, channel);
    });
  }
}

template <Activation kActivation, class T>
void all_grads(const ChannelNormBackwardParams& p) {
  const ChannelShape& s = p.shape;
  const bool writes = p.grad_input.data != nullptr || p.grad_residual.data != nullptr;
  if (writes && p.finds_means() && cell_by_cell(s)) {
    parallel_for(0, s.cells(), row_grain(s.cell_elements()), [&](int64_t begin, int64_t end) {
      const BackwardReaders<T> readers(p);
      for (int64_t cell = begin; cell < end; ++cell) {
        over_units_of_cell(s, cell, [&](const Unit& unit) { unit_sums<kActivation>(p, unit, readers.read(unit)); });
        cell_means<T>(p, cell);
        over_units_of_cell(s, cell, [&](const Unit& unit) { unit_grads<kActivation>(p, unit, readers.read(unit)); });
      }
    });
    return;
  }
  if (p.needs_sums()) {
    over_units(s, [&] {
      return [&p, readers = BackwardReaders<T>(p)](const Unit& unit) {
        unit_sums<kActivation>(p, unit, readers.read(unit));
      };
    });
  }
  if (p.finds_means()) {
    parallel_for(0, s.cells(), row_grain(s.cell_slabs() * s.group_channels()), [&](int64_t begin, int64_t end) {
      for (int64_t cell = begin; cell < end; ++cell) cell_means<T>(p, cell);
    });
  }
  if (!writes) return;
  over_units(s, [&] {
    return [&p, readers = BackwardReaders<T>(p)](const Unit& unit) {
      unit_grads<kActivation>(p, unit, readers.read(unit));
    };
  });
}

template <class T>
void sum_slabs(const ChannelShape& shape, const void* partials, const PerChannel& output) {
  using A = acc_t<T>;
  if (output.data == nullptr) return;
  const A* from = static_cast<const A*>(partials);
  if (output.wide) return reduce_partials<A>(from, shape.slabs(), shape.channels, static_cast<A*>(output.data));
  reduce_partials<T>(from, shape.slabs(), shape.channels, static_cast<T*>(output.data));
}

}  // namespace

void channel_norm_backward(const ChannelNormBackwardParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    visit_norm_activation(p.activation, [&](auto activation) { all_grads<activation(), T>(p); });
    sum_slabs<T>(p.shape, p.dot_partials, p.grad_weight);
    sum_slabs<T>(p.shape, p.grad_partials, p.grad_bias);
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(channel_norm_backward, ChannelNormBackwardParams)
