// What both passes of the channel norms share: units of work, and where their values lie.
//
// A unit is some neighbouring channels of a slab: one where the positions are neighbours in memory, up to kUnitChannels
// where the channels are. The loops along memory are vectors in both.

#pragma once

#include <type_traits>

#include "cpu/fast_math.h"
#include "cpu/partials.h"
#include "kernels/channel_norm.h"

WARPWRIGHT_ISA_BEGIN

// Two pages of float: the accumulators of a unit stay in the first-level cache.
inline constexpr int64_t kUnitChannels = 512;
// Rows of channels that are taken together, held in registers.
inline constexpr int kTileRows = 8;

struct Unit {
  int64_t slab, channel, width;      // Channels [channel, channel + width).
  int64_t sample, first, positions;  // Positions [first, first + positions) of the sample.
};

// Channels of a unit: all units are about as wide, because threads wait for the last.
inline int64_t unit_width(const ChannelShape& shape) {
  if (!shape.channels_last || shape.channels == 0) return 1;
  const int64_t units = (shape.channels + kUnitChannels - 1) / kUnitChannels;
  const int64_t vectors = (shape.channels + units * kFloatLanes - 1) / (units * kFloatLanes);
  return vectors * kFloatLanes;
}

inline Unit unit_at(const ChannelShape& shape, int64_t slab, int64_t channel, int64_t widest) {
  const int64_t rest = shape.channels - channel, width = rest < widest ? rest : widest;
  // Small planes are as short as the divisions that find them.
  if (shape.per_sample == 1) return {slab, channel, width, slab, 0, shape.positions};
  return {slab, channel, width, slab / shape.per_sample, shape.first_position(slab), shape.slab_positions(slab)};
}
inline int64_t cell_of(const ChannelShape& shape, const Unit& unit, int64_t channel) {
  return shape.first_cell(unit.sample) + (shape.groups == shape.channels ? channel : channel / shape.group_channels());
}

// Calls make()(unit) for every unit, on several threads; each has what one make() returned.
template <class Make>
void over_units(const ChannelShape& shape, const Make& make) {
  const int64_t widest = unit_width(shape);
  const int64_t tiles = (shape.channels + widest - 1) / widest;
  const int64_t width = shape.channels < widest ? shape.channels : widest;
  const int64_t positions = shape.positions < shape.slab ? shape.positions : shape.slab;
  parallel_for(0, shape.slabs() * tiles, row_grain(width * positions), [&](int64_t begin, int64_t end) {
    const auto body = make();
    for (int64_t i = begin; i < end; ++i) body(unit_at(shape, i / tiles, i % tiles * widest, widest));
  });
}

// Cells that are enough for any number of threads. With so many a cell is taken through all stages while it lies in
// the cache; the results are the same.
inline constexpr int64_t kManyCells = 16;
inline bool cell_by_cell(const ChannelShape& shape) { return !shape.channels_last && shape.cells() >= kManyCells; }

// Calls body(unit) for the units of a cell, where units have one channel.
template <class Body>
void over_units_of_cell(const ChannelShape& shape, int64_t cell, const Body& body) {
  const int64_t slab = shape.cell_first_slab(cell), channel = shape.cell_first_channel(cell);
  const int64_t last_slab = slab + shape.cell_slabs(), last_channel = channel + shape.group_channels();
  for (int64_t s = slab; s < last_slab; ++s) {
    for (int64_t c = channel; c < last_channel; ++c) body(unit_at(shape, s, c, 1));
  }
}

// The values of a unit as lines of neighbours: positions' channels, or one line of a channel's positions.
template <class T>
struct Lines {
  const T* data;
  int64_t stride;  // From line to line.

  const T* line(int64_t i) const { return data + i * stride; }
};

// Finds them where they lie, or gathers them when they have gaps.
template <class T>
class LineReader {
 public:
  LineReader(const Planes& planes, const ChannelShape& shape)
      : planes_(planes),
        shape_(shape),
        gaps_(planes.data != nullptr && (shape.channels_last ? planes.channel : planes.position) != 1),
        scratch_(gaps_ ? shape.slab * (shape.channels_last ? kUnitChannels : 1) : 0) {}

  Lines<T> read(const Unit& unit) const {
    if (planes_.data == nullptr) return {nullptr, 0};
    const T* start = static_cast<const T*>(planes_.data) + planes_.offset(unit.sample, unit.channel, unit.first);
    if (!gaps_) return {start, shape_.channels_last ? planes_.position : 0};
    T* to = scratch_.data();
    for (int64_t at = 0; at < unit.positions; ++at) {
      for (int64_t c = 0; c < unit.width; ++c) *to++ = start[at * planes_.position + c * planes_.channel];
    }
    return {scratch_.data(), unit.width};
  }

 private:
  const Planes& planes_;
  const ChannelShape& shape_;
  bool gaps_;
  Scratch<T> scratch_;
};

// Where a unit's values are written: outputs have no gaps.
template <class T>
T* unit_output(const Planes& planes, const Unit& unit) {
  if (planes.data == nullptr) return nullptr;
  return static_cast<T*>(planes.data) + planes.offset(unit.sample, unit.channel, unit.first);
}

template <class T>
acc_t<T> channel_value(const PerChannel& values, int64_t channel, acc_t<T> otherwise) {
  if (values.data == nullptr) return otherwise;
  if (values.wide) return static_cast<const acc_t<T>*>(values.data)[channel];
  return to_acc(static_cast<const T*>(values.data)[channel]);
}

// Running statistics of a channel, moved towards what was found by `share`.
template <class T>
void move_running(const PerChannel& running, const PerChannel& moved, int64_t channel, double share, double found) {
  using A = acc_t<T>;
  if (moved.data == nullptr) return;
  const double old = channel_value<T>(running, channel, 0);
  const A value = static_cast<A>(share != 0 ? (1 - share) * old + share * found : old);
  if (moved.wide) {
    static_cast<A*>(moved.data)[channel] = value;
  } else {
    static_cast<T*>(moved.data)[channel] = from_acc<T>(value);
  }
}

// Calls f with the activation as a constant.
template <class F>
void visit_norm_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kRelu: return f(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kSilu: return f(std::integral_constant<Activation, Activation::kSilu>{});
    default: return f(std::integral_constant<Activation, Activation::kNone>{});
  }
}

WARPWRIGHT_ISA_END
