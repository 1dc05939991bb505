// What both passes of the channel norms share: which thread takes which values.
//
// A unit is some neighbouring channels of a slab. Where positions are neighbours in memory it is one channel, and a
// warp takes it: lane by lane along the positions. Where channels are neighbours (channels last) a block takes kWidth
// packs of channels, and its threads stand in as many columns. Either way a thread holds kCount neighbours at a time:
// as many as 16 bytes have, or one where a tensor has gaps or is not aligned.

#pragma once

#include "cuda/channel_norm/per_channel.cuh"
#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/reduction.cuh"
#include "kernels/channel_norm.h"

namespace warpwright::cuda {

inline constexpr int kUnitThreads = 256;
// Packs that a thread reads before it uses the first: what is under way hides the memory's latency.
inline constexpr int kHeldPacks = 4;

template <int kCount, bool kLast>
struct UnitShape {
  static constexpr int kPackChannels = kLast ? kCount : 1, kPackPositions = kLast ? 1 : kCount;
  static constexpr int kWidth = !kLast ? 1 : kCount > 1 ? 8 : 32;
  static constexpr int kTeam = kLast ? kUnitThreads : kWarpSize;
  static constexpr int kLanes = kTeam / kWidth;  // Threads along the positions.
  static constexpr int kStep = kLanes * kPackPositions;
  static constexpr int kChannels = kWidth * kPackChannels;

  static __host__ __device__ int64_t units(const ChannelShape& shape) {
    return shape.slabs() * ((shape.channels + kChannels - 1) / kChannels);
  }
};

// A thread's part of a unit.
template <int kCount, bool kLast>
struct UnitPart : UnitShape<kCount, kLast> {
  using Shape = UnitShape<kCount, kLast>;
  int64_t slab, sample, channel, start;  // The slab's first position.
  int64_t first, last;                   // The thread's: from first on, kStep apart, below last.
  int lane;
  bool holds;  // Whether the tensor has these channels.

  __device__ __forceinline__ UnitPart(const ChannelShape& shape, int64_t unit) {
    const int64_t tiles = (shape.channels + Shape::kChannels - 1) / Shape::kChannels;
    const int thread = static_cast<int>(threadIdx.x) % Shape::kTeam;
    slab = unit / tiles;
    sample = slab / shape.per_sample;
    lane = thread / Shape::kWidth;
    channel = unit % tiles * Shape::kChannels + thread % Shape::kWidth * Shape::kPackChannels;
    holds = channel < shape.channels;
    start = shape.first_position(slab);
    first = start + lane * Shape::kPackPositions;
    last = holds ? start + shape.slab_positions(slab) : first;
  }
};

// body(part) for every unit that the thread's team takes.
template <int kCount, bool kLast, class Body>
__device__ __forceinline__ void for_each_unit(const ChannelShape& shape, const Body& body) {
  constexpr int kTeams = kUnitThreads / UnitShape<kCount, kLast>::kTeam;
  const int team = static_cast<int>(threadIdx.x) / UnitShape<kCount, kLast>::kTeam;
  const int64_t units = UnitShape<kCount, kLast>::units(shape);
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * kTeams + team; unit < units;
       unit += static_cast<int64_t>(gridDim.x) * kTeams) {
    body(UnitPart<kCount, kLast>(shape, unit));
  }
}

// kHeldPacks packs of a tensor, from one position on; zero past the end.
template <class T, int kCount, bool kLast>
struct HeldPacks {
  using Part = UnitPart<kCount, kLast>;
  Pack<T, kCount> packs[kHeldPacks];

  __device__ __forceinline__ float get(int k, int i) const { return to_float(packs[k].values[i]); }
  __device__ __forceinline__ void set(int k, int i, float value) { packs[k].values[i] = from_float<T>(value); }

  __device__ __forceinline__ void load(const Planes& planes, const Part& part, int64_t from) {
    const T* data = static_cast<const T*>(planes.data) + planes.offset(part.sample, part.channel, 0);
#pragma unroll
    for (int k = 0; k < kHeldPacks; ++k) {
      const int64_t at = from + k * Part::kStep;
      if (at < part.last) {
        packs[k] = *reinterpret_cast<const Pack<T, kCount>*>(data + at * planes.position);
      } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) packs[k].values[i] = from_float<T>(0.0f);
      }
    }
  }

  // The first pack alone.
  __device__ __forceinline__ void load_one(const Planes& planes, const Part& part, int64_t at) {
    if (!part.holds) return;
    const T* data = static_cast<const T*>(planes.data) + planes.offset(part.sample, part.channel, at);
    packs[0] = *reinterpret_cast<const Pack<T, kCount>*>(data);
  }

  __device__ __forceinline__ void store(const Planes& planes, const Part& part, int64_t from) const {
    T* data = static_cast<T*>(planes.data) + planes.offset(part.sample, part.channel, 0);
#pragma unroll
    for (int k = 0; k < kHeldPacks; ++k) {
      const int64_t at = from + k * Part::kStep;
      if (at < part.last) store_whole(data + at * planes.position, packs[k]);
    }
  }
};

// What is the same at every position of a thread's channels.
template <class T, int kChannels>
struct ChannelValues {
  float mean[kChannels], rstd[kChannels], weight[kChannels], bias[kChannels];
  int64_t cell[kChannels];

  template <class P, class Part>
  __device__ __forceinline__ void load(const P& p, const Part& part) {
    if (!part.holds) return;
    const auto group_channels = static_cast<unsigned>(p.shape.group_channels());
    const int64_t first = p.shape.first_cell(part.sample);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const int64_t channel = part.channel + i;
      cell[i] = first + static_cast<unsigned>(channel) / group_channels;
      mean[i] = static_cast<const float*>(p.mean)[cell[i]];
      rstd[i] = static_cast<const float*>(p.rstd)[cell[i]];
      weight[i] = channel_value<T>(p.weight, channel, 1.0f);
      bias[i] = channel_value<T>(p.bias, channel, 0.0f);
    }
  }
};

// The activations of an epilogue that a channel norm may end in: all of them, at each of a thread's elements, would be
// more code than everything else.
__device__ __forceinline__ float norm_activation(Activation activation, float z) {
  if (activation == Activation::kNone) return z;
  return activation == Activation::kSilu ? activate(Activation::kSilu, z) : activate(Activation::kRelu, z);
}
__device__ __forceinline__ float norm_activation_grad(Activation activation, float z) {
  if (activation == Activation::kNone) return 1.0f;
  return activation == Activation::kSilu ? activation_grad(Activation::kSilu, z)
                                         : activation_grad(Activation::kRelu, z);
}

// A pair of numbers for each channel of a block's unit, one row a lane.
template <int kCount, bool kLast>
struct LanePairs {
  static constexpr int kChannels = UnitShape<kCount, kLast>::kChannels;
  float a[UnitShape<kCount, kLast>::kLanes][kChannels], b[UnitShape<kCount, kLast>::kLanes][kChannels];
};

// ---- for launchers ----

// Whether every tensor can be read in packs along the channels or along the positions.
template <class T>
bool planes_fit_packs(const ChannelShape& shape, std::initializer_list<const Planes*> tensors) {
  constexpr int64_t kPack = kPackSize<T>;
  if ((shape.channels_last ? shape.channels : shape.positions) % kPack != 0) return false;
  for (const Planes* t : tensors) {
    if (t->data == nullptr) continue;
    const int64_t across = shape.channels_last ? t->position : t->channel;
    if ((shape.channels_last ? t->channel : t->position) != 1 || across % kPack != 0) return false;
    if (shape.samples > 1 && t->sample % kPack != 0) return false;
    if (reinterpret_cast<uintptr_t>(t->data) % kPackBytes != 0) return false;
  }
  return true;
}

// Calls f(the kernels' variant, the launch of one thread for each part of the units).
template <class T, class F>
void visit_units(const ChannelShape& shape, bool packs, Stream stream, const F& f) {
  const auto call = [&]<int kCount, bool kLast>(UnitShape<kCount, kLast> variant) {
    constexpr int64_t kMaxBlocks = 1 << 30;
    constexpr int kTeams = kUnitThreads / UnitShape<kCount, kLast>::kTeam;
    const int64_t wanted = (variant.units(shape) + kTeams - 1) / kTeams;
    const auto blocks = static_cast<unsigned>(wanted < kMaxBlocks ? wanted : kMaxBlocks);
    f(std::integral_constant<int, kCount>{}, std::bool_constant<kLast>{},
      LaunchConfig{dim3(blocks), dim3(kUnitThreads), stream});
  };
  constexpr int kPack = kPackSize<T>;
  if (shape.channels_last) return packs ? call(UnitShape<kPack, true>{}) : call(UnitShape<1, true>{});
  packs ? call(UnitShape<kPack, false>{}) : call(UnitShape<1, false>{});
}

// A block for each cell.
inline constexpr int kCellThreads = 128;
inline LaunchConfig cell_config(const ChannelShape& shape, Stream stream) {
  return {dim3(static_cast<unsigned>(shape.cells())), dim3(kCellThreads), stream};
}

// total(term): the sum over a cell's partial results of term(positions, index, channel), in every thread.
struct CellParts {
  const ChannelShape& shape;
  int64_t first, slabs, channel, width;

  __device__ __forceinline__ CellParts(const ChannelShape& shape, int64_t cell)
      : shape(shape),
        first(shape.cell_first_slab(cell)),
        slabs(shape.cell_slabs()),
        channel(shape.cell_first_channel(cell)),
        width(shape.group_channels()) {}

  // Steps in place of divisions of 64 bits, which are hundreds of instructions.
  template <class Term>
  __device__ __forceinline__ float total(const Term& term) const {
    const auto across = static_cast<unsigned>(width);
    const int64_t full = shape.slab, rest = shape.positions - (shape.per_sample - 1) * full;
    const int64_t slab_step = kCellThreads / across, channel_step = kCellThreads % across;
    int64_t slab = threadIdx.x / across, c = threadIdx.x % across;
    const int64_t place_step = slab_step % shape.per_sample;
    int64_t place = slab % shape.per_sample;  // In its sample: a cell's slabs begin with a sample's first.
    float sum = 0.0f;
    while (slab < slabs) {
      const auto count = static_cast<float>(place == shape.per_sample - 1 ? rest : full);
      sum += term(count, (first + slab) * shape.channels + channel + c, channel + c);
      slab += slab_step;
      place += place_step;
      c += channel_step;
      if (c >= width) {
        c -= width;
        ++slab;
        ++place;
      }
      if (place >= shape.per_sample) place -= shape.per_sample;
    }
    return block_reduce<Sum, kCellThreads>(sum);
  }
};

}  // namespace warpwright::cuda
