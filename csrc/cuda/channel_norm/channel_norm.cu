// Group norm (Wu and He, 2018), batch norm (Ioffe and Szegedy, 2015) and instance norm, with a residual and an
// activation behind them: fusing these saves a write and a read of the tensor for each. Three kernels: statistics of
// the slabs, statistics of the cells, output.

#include "cuda/channel_norm/units.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// The mean of some values and the squared differences to it: the mean of squares less the square of the mean would lose
// every digit when the mean is large. What is summed are differences to a slab's first value, as sums of large numbers
// would cost the mean some.
struct Moments {
  float mean = 0.0f, squares = 0.0f;

  // Joins `count` values to the `before` ones in front of them (Chan, Golub and LeVeque, 1979).
  __device__ __forceinline__ void join(float before, float count, const Moments& other) {
    const float share = count / (before + count), delta = other.mean - mean;
    mean += delta * share;
    squares += other.squares + delta * delta * before * share;
  }
};

// The moments of what a thread holds of each of its channels, less the slab's first value, and of how many.
template <class T, int kCount, bool kLast>
__device__ __forceinline__ float thread_moments(const Planes& input, const UnitPart<kCount, kLast>& part,
                                                const HeldPacks<T, kCount, kLast>& origin,
                                                Moments (&moments)[UnitPart<kCount, kLast>::kPackChannels]) {
  using Part = UnitPart<kCount, kLast>;
  constexpr int kChannels = Part::kPackChannels, kEach = Part::kPackPositions;
  float before = 0.0f;
  for (int64_t at = part.first; at < part.last; at += kHeldPacks * Part::kStep) {
    HeldPacks<T, kCount, kLast> x;
    x.load(input, part, at);
    const int64_t left = (part.last - at + Part::kStep - 1) / Part::kStep;
    const int held = left < kHeldPacks ? static_cast<int>(left) : kHeldPacks;
    const float count = static_cast<float>(held * kEach);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      Moments tile;
      const float shift = origin.get(0, c);
#pragma unroll
      for (int k = 0; k < kHeldPacks; ++k) {
#pragma unroll
        for (int i = 0; i < kEach; ++i) tile.mean += k < held ? x.get(k, kLast ? c : i) - shift : 0.0f;
      }
      tile.mean /= count;
#pragma unroll
      for (int k = 0; k < kHeldPacks; ++k) {
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          const float d = x.get(k, kLast ? c : i) - shift - tile.mean;
          tile.squares += k < held ? d * d : 0.0f;
        }
      }
      moments[c].join(before, count, tile);
    }
    before += count;
  }
  return before;
}

// machine code: 1, true>: plain; 1, false>: SHFL; true>: LDG.128; else: SHFL, LDG.128
template <class T, int kCount, bool kLast>
__global__ void __launch_bounds__(kUnitThreads) slab_statistics_kernel(const ChannelNormParams p) {
  using Part = UnitPart<kCount, kLast>;
  for_each_unit<kCount, kLast>(p.shape, [&](const Part& part) {
    float* means = static_cast<float*>(p.mean_partials) + part.slab * p.shape.channels;
    float* squares = static_cast<float*>(p.square_partials) + part.slab * p.shape.channels;
    Moments moments[Part::kPackChannels];
    HeldPacks<T, kCount, kLast> origin;
    origin.load_one(p.input, part, part.start);
    const float count = thread_moments(p.input, part, origin, moments);
    const auto positions = static_cast<float>(p.shape.slab_positions(part.slab));
    if constexpr (!kLast) {
      const float mean = warp_reduce<Sum>(count * moments[0].mean) / positions;
      const float d = moments[0].mean - mean;
      const float square = warp_reduce<Sum>(moments[0].squares + count * d * d);
      if (part.lane == 0) {
        means[part.channel] = mean + origin.get(0, 0);
        squares[part.channel] = square;
      }
    } else {
      __shared__ LanePairs<kCount, kLast> lanes;
      __shared__ float origins[Part::kChannels];
      const int column = static_cast<int>(threadIdx.x);
#pragma unroll
      for (int c = 0; c < Part::kPackChannels; ++c) {
        const int at = column % Part::kWidth * Part::kPackChannels + c;
        lanes.a[part.lane][at] = moments[c].mean;
        if (part.lane == 0) origins[at] = origin.get(0, c);
        lanes.b[part.lane][at] = moments[c].squares;
      }
      __syncthreads();
      const int64_t channel = part.channel - column % Part::kWidth * Part::kPackChannels + column;
      if (column < Part::kChannels && channel < p.shape.channels) {
        Moments all;
        float before = 0.0f;
        for (int lane = 0; lane < Part::kLanes && before < positions; ++lane) {
          const int64_t rows = (static_cast<int64_t>(positions) - lane + Part::kLanes - 1) / Part::kLanes;
          all.join(before, static_cast<float>(rows), {lanes.a[lane][column], lanes.b[lane][column]});
          before += static_cast<float>(rows);
        }
        means[channel] = all.mean + origins[column];
        squares[channel] = all.squares;
      }
      __syncthreads();
    }
  });
}

// machine code: SHFL
template <class T>
__global__ void __launch_bounds__(kCellThreads) cell_statistics_kernel(const ChannelNormParams p) {
  const int64_t cell = blockIdx.x;
  float mean = p.moments != nullptr ? 0.0f : NAN, var = mean;  // Of nothing.
  if (p.constant) {
    mean = channel_value<T>(p.running_mean, cell, 0.0f);
    var = channel_value<T>(p.running_var, cell, 0.0f);
  } else if (p.shape.slabs() > 0) {
    const CellParts parts(p.shape, cell);
    const auto elements = static_cast<float>(p.shape.cell_elements());
    const float* means = static_cast<const float*>(p.mean_partials);
    const float* squares = static_cast<const float*>(p.square_partials);
    const float origin = means[parts.first * p.shape.channels + parts.channel];
    mean =
        origin + parts.total([&](float count, int64_t i, int64_t) { return count * (means[i] - origin); }) / elements;
    var = parts.total([&](float count, int64_t i, int64_t) {
      const float d = means[i] - mean;
      return squares[i] + count * d * d;
    }) / elements;
  }
  if (threadIdx.x != 0) return;
  const auto elements = static_cast<float>(p.shape.cell_elements());
  if (p.moments != nullptr) {
    float* moments = static_cast<float*>(p.moments) + cell;
    moments[0] = mean;
    moments[p.shape.channels] = var;
    moments[2 * p.shape.channels] = elements;
    return;
  }
  static_cast<float*>(p.mean)[cell] = mean;
  static_cast<float*>(p.rstd)[cell] = 1.0f / sqrtf(var + static_cast<float>(p.eps));
  move_running<T>(p.running_mean, p.new_mean, cell, p.momentum, mean);
  move_running<T>(p.running_var, p.new_var, cell, p.momentum, var * (elements / (elements - 1.0f)));
}

// machine code: 1, false>: plain; 1, true>: plain; else: 16-byte
template <class T, int kCount, bool kLast>
__global__ void __launch_bounds__(kUnitThreads) channel_norm_kernel(const ChannelNormParams p) {
  using Part = UnitPart<kCount, kLast>;
  for_each_unit<kCount, kLast>(p.shape, [&](const Part& part) {
    ChannelValues<T, Part::kPackChannels> channels;
    channels.load(p, part);
    for (int64_t at = part.first; at < part.last; at += kHeldPacks * Part::kStep) {
      HeldPacks<T, kCount, kLast> x, residual;
      x.load(p.input, part, at);
      if (p.residual.data != nullptr) residual.load(p.residual, part, at);
#pragma unroll
      for (int k = 0; k < kHeldPacks; ++k) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int c = kLast ? i : 0;
          // The mean first, so that a large one costs no digits.
          float y = (x.get(k, i) - channels.mean[c]) * channels.rstd[c] * channels.weight[c] + channels.bias[c];
          if (p.residual.data != nullptr) y += residual.get(k, i);
          x.set(k, i, norm_activation(p.activation, y));
        }
      }
      x.store(p.output, part, at);
    }
  });
}

// f(a value of the dtype, the kernels' variant, the launch of the units), if there are any.
template <class F>
void visit_forward_units(const ChannelNormParams& params, Stream stream, const F& f) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (params.shape.slabs() == 0) return;
    const bool packs = planes_fit_packs<T>(params.shape, {&params.input, &params.residual, &params.output});
    visit_units<T>(params.shape, packs, stream,
                   [&](auto count, auto last, const LaunchConfig& config) { f(tag, count, last, config); });
  });
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void channel_norm_slabs(const ChannelNormParams& params, Stream stream) {
  visit_forward_units(params, stream, [&](auto tag, auto count, auto last, const LaunchConfig& config) {
    launch("channel_norm_slabs", slab_statistics_kernel<decltype(tag), count(), last()>, config, params);
  });
}

void channel_norm_cells(const ChannelNormParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    const LaunchConfig config = cell_config(params.shape, stream);
    launch("channel_norm_cells", cell_statistics_kernel<decltype(tag)>, config, params);
  });
}

void channel_norm_output(const ChannelNormParams& params, Stream stream) {
  visit_forward_units(params, stream, [&](auto tag, auto count, auto last, const LaunchConfig& config) {
    launch("channel_norm", channel_norm_kernel<decltype(tag), count(), last()>, config, params);
  });
}

void channel_norm_moments(const ChannelNormParams& params, Stream stream) {
  channel_norm_slabs(params, stream);
  channel_norm_cells(params, stream);
}

void channel_norm_forward(const ChannelNormParams& params, Stream stream) {
  if (!params.constant) channel_norm_slabs(params, stream);
  channel_norm_cells(params, stream);
  channel_norm_output(params, stream);
}

}  // namespace warpwright::cuda
