// The backward pass of the causal convolutions: input and gradient are read once, and the gradient of the input is
// written in the pass that makes the slab's sums for the weights. With g the gradient of the pre-activation, which is
// computed again:
//   grad_x[s] = sum over k of weight[k] * g[s + (width - 1) - k]
//   grad_weight[k] = sum over t of g[t] * x[t - (width - 1) + k]
// So grad_x waits for the g's of later positions; at the end of a slab its warp or thread computes those of the next.

#include "cuda/causal_conv/windows.cuh"
#include "cuda/tile/partials.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// What the final state gives to the gradient of x[t]; t < 0 for the initial state's elements.
template <class T>
__device__ __forceinline__ float final_grad(const CausalConvBackwardParams& p, int64_t n, int64_t c, int64_t t) {
  const int64_t j = t - (p.shape.length - (p.shape.width - 1));
  if (p.grad_final_state.data == nullptr || j < 0) return 0.0f;
  return to_float(static_cast<const T*>(p.grad_final_state.data)[p.grad_final_state.offset(n, c, j)]);
}

__device__ __forceinline__ float* partial_of(void* partials, int64_t index) {
  return static_cast<float*>(partials) + index;
}

// A lane's part of a slab's sums for the taps, in registers where there is one register for each tap. Others are summed
// over the warp tile by tile, and lane k keeps that of tap k.
template <int kWidth>
struct TapSums {
  float values[kWidth < 1 ? 1 : kWidth]{};

  __device__ __forceinline__ void add(int k, float value, int lane) {
    if constexpr (kWidth > 0) {
      values[k] += value;
    } else {
      const float total = warp_reduce<Sum>(value);
      if (lane == k) values[0] += total;
    }
  }
  __device__ __forceinline__ void write(float* to, int lane, int width) const {
    if constexpr (kWidth > 0) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const float total = warp_reduce<Sum>(values[k]);
        if (lane == k) to[k] = total;
      }
    } else if (lane < width) {
      to[lane] = values[0];
    }
  }
};

// machine code: 1>: SHFL; else: SHFL, 2 x LDG.128, STG.128
template <class T, int kWidth, int kCount>
__global__ void __launch_bounds__(kConvThreads) causal_conv_backward_kernel(const CausalConvBackwardParams p) {
  using Ring = RowRing<kCount>;
  __shared__ typename Ring::Rows x_rows[kConvWarps], g_rows[kConvWarps];
  const CausalConvShape& s = p.shape;
  const int width = kWidth == 0 ? static_cast<int>(s.width) : kWidth, before = width - 1;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kConvWarps + warp;
  if (unit >= s.slabs() * s.channels) return;
  const int64_t row = unit / s.per_sample(), in_row = unit % s.per_sample(), first = in_row * s.slab();
  const int64_t n = row / s.channels, c = row % s.channels;
  const int positions = static_cast<int>(s.slab_positions(first));
  // With those that the next slab has, and this one needs g of.
  const int seen = static_cast<int>(s.length - first < positions + before ? s.length - first : positions + before);
  const Ring x{x_rows[warp]}, g{g_rows[warp]};
  const T* input = static_cast<const T*>(p.input.data) + p.input.offset(n, c, first);
  const T* grad = static_cast<const T*>(p.grad_output.data) + p.grad_output.offset(n, c, first);
  const T* weight = static_cast<const T*>(p.weight) + c * width;
  const float bias = bias_of<T>(p.bias, c);
  TapSums<kWidth> sums;
  float bias_sum = 0.0f;
  if (lane < before) {
    const int64_t t = first + lane - before;
    x.at(lane - before) = to_float(sequence_value<T>(p.input, p.initial_state, width, n, c, t));
  }
  // A tile further than the slab goes: there the last one's gradients are written.
  for (int tile = 0; tile == 0 || tile < positions + Ring::kTile; tile += Ring::kTile) {
    const int q = tile + lane * kCount;
    float values[kCount]{}, grads[kCount]{};
    if (q < seen) {
      load_floats<T, kCount>(input + q * p.input.position, values);
      load_floats<T, kCount>(grad + q * p.grad_output.position, grads);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) x.at(q + i) = values[i];
    __syncwarp();
    if (s.silu) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = bias;
      for_each_tap<kWidth, kCount>(x, q - before, width, [&](int k, const float (&under)[kCount]) {
        const float tap = to_float(weight[k]);
#pragma unroll
        for (int i = 0; i < kCount; ++i) values[i] += tap * under[i];
      });
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (q < seen) grads[i] *= activation_grad(Activation::kSilu, values[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) g.at(q + i) = grads[i];
    if (tile < positions && p.weight_partials != nullptr) {
      for_each_tap<kWidth, kCount>(x, q - before, width, [&](int k, const float (&under)[kCount]) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kCount; ++i) sum += q + i < positions ? grads[i] * under[i] : 0.0f;
        sums.add(k, sum, lane);
      });
    }
    float tile_sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kCount; ++i) tile_sum += q + i < positions ? grads[i] : 0.0f;
    bias_sum += tile_sum;
    __syncwarp();
    if (tile == 0 && first == 0 && lane < before && p.grad_initial_state.data != nullptr) {
      float sum = final_grad<T>(p, n, c, lane - before);
      for (int k = 0; k <= lane; ++k) sum += to_float(weight[k]) * g.at(lane - k);
      static_cast<T*>(p.grad_initial_state.data)[p.grad_initial_state.offset(n, c, lane)] = from_float<T>(sum);
    }
    const int at = q - Ring::kTile;
    if (at < 0 || at >= positions || p.grad_input.data == nullptr) continue;
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = final_grad<T>(p, n, c, first + at + i);
    for_each_tap<kWidth, kCount>(g, at, width, [&](int k, const float (&later)[kCount]) {
      const float tap = to_float(weight[before - k]);
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] += tap * later[i];
    });
    T* out = static_cast<T*>(p.grad_input.data) + p.grad_input.offset(n, c, first);
    store_floats<T, kCount>(out + at * p.grad_input.position, values);
  }
  const int64_t slab = n * s.per_sample() + in_row;
  if (p.weight_partials != nullptr)
    sums.write(partial_of(p.weight_partials, (slab * s.channels + c) * width), lane, width);
  bias_sum = warp_reduce<Sum>(bias_sum);
  if (p.bias_partials != nullptr && lane == 0) *partial_of(p.bias_partials, slab * s.channels + c) = bias_sum;
}

// Sums of a thread's channels for each tap: in registers, or in its column of shared memory.
template <int kWidth, int kCount>
struct ChannelSums {
  static constexpr int kSharedFloats = 0;
  float values[kWidth][kCount]{};

  __device__ __forceinline__ ChannelSums(float*, int) {}
  __device__ __forceinline__ float& at(int k, int i) { return values[k][i]; }
};
template <>
struct ChannelSums<0, 1> {
  static constexpr int kSharedFloats = kMaxTaps * kConvThreads;
  float* column;

  __device__ __forceinline__ ChannelSums(float* shared, int width) : column(shared + threadIdx.x) {
    for (int k = 0; k < width; ++k) column[k * kConvThreads] = 0.0f;
  }
  __device__ __forceinline__ float& at(int k, int) { return column[k * kConvThreads]; }
};

// The gradient need not lie as the input does: autograd hands down what it has, for sums tensors without strides.
template <class T, int kCount>
__device__ __forceinline__ void load_grads(const Sequences& grads, const T* from, bool packs, float (&to)[kCount]) {
  if (packs) return load_floats<T, kCount>(from, to);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = to_float(from[i * grads.channel]);
}

// The sum over a block's walkers, in order, of what each thread has for its channels; every thread must call. `to`
// says where that of a channel goes.
template <int kCount, class To>
__device__ __forceinline__ void sum_walkers(float* shared, const float (&values)[kCount], const Walk<kCount>& walk,
                                            int64_t channels, const To& to) {
  constexpr int kChannels = Walk<kCount>::kChannels;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) shared[walk.walker * kChannels + walk.pack * kCount + i] = values[i];
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  const int64_t channel = walk.channel - walk.pack * kCount + column;
  if (column >= kChannels || channel >= channels) return;
  float total = 0.0f;
  for (int w = 0; w < kConvWalkers; ++w) total += shared[w * kChannels + column];
  *to(channel) = total;
}

// machine code: 1>: plain; float, 4, 4>: 16-byte; __half, 4, 4>: 2 x LDG.64, STG.64; else: plain
template <class T, int kWidth, int kCount>
__global__ void __launch_bounds__(kConvThreads) causal_conv_last_backward_kernel(const CausalConvBackwardParams p) {
  using Values = Window<kWidth, kCount>;
  using Sums = ChannelSums<kWidth, kCount>;
  // The windows' floats serve the sums over the walkers when the walk has ended.
  constexpr int kWalked = 2 * Values::kSharedFloats, kSummed = kConvThreads * kCount;
  __shared__ float shared[(kWalked < kSummed ? kSummed : kWalked) + Sums::kSharedFloats];
  const CausalConvShape& s = p.shape;
  const int width = kWidth == 0 ? static_cast<int>(s.width) : kWidth, before = width - 1;
  const Walk<kCount> walk(s);
  Values x(shared, width), g(shared + Values::kSharedFloats, width);
  Sums sums(shared + (kWalked < kSummed ? kSummed : kWalked), width);
  float bias_sums[kCount]{};
  if (walk.active) {
    const ChannelTaps<T, kWidth, kCount> taps(p.weight, walk.channel, width);
    float bias[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) bias[i] = bias_of<T>(p.bias, walk.channel + i);
    for (int64_t t = walk.first - before; t < walk.first; ++t) {
      float values[kCount];
      load_sequence<T, kCount>(p.input, p.initial_state, width, walk, t, values);
      x.push(values);
    }
    const T* grad = static_cast<const T*>(p.grad_output.data) + p.grad_output.offset(walk.n, walk.channel, 0);
    const bool packs = fits_conv_packs(p.grad_output, true, kCount, kCount * static_cast<int64_t>(sizeof(T)));
    for (int64_t t = walk.first; t < walk.last + before; ++t) {
      float values[kCount]{}, grads[kCount]{};
      if (t < s.length) {
        load_sequence<T, kCount>(p.input, p.initial_state, width, walk, t, values);
        load_grads<T, kCount>(p.grad_output, grad + t * p.grad_output.position, packs, grads);
      }
      x.push(values);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (!s.silu || t >= s.length) continue;
        float preact = bias[i];
#pragma unroll
        for (int k = 0; k < width; ++k) preact += taps.at(k, i) * x.at(k, i);
        grads[i] *= activation_grad(Activation::kSilu, preact);
      }
      g.push(grads);
      if (t < walk.last) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
#pragma unroll
          for (int k = 0; k < width; ++k) sums.at(k, i) += grads[i] * x.at(k, i);
          bias_sums[i] += grads[i];
        }
      }
      const int64_t at = t - before;
      if ((at < walk.first && at >= 0) || at >= walk.last) continue;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        values[i] = final_grad<T>(p, walk.n, walk.channel + i, at);
#pragma unroll
        for (int k = 0; k < width; ++k) values[i] += taps.at(before - k, i) * g.at(k, i);
      }
      if (at >= 0 && p.grad_input.data != nullptr) {
        const int64_t offset = p.grad_input.offset(walk.n, walk.channel, at);
        store_floats<T, kCount>(static_cast<T*>(p.grad_input.data) + offset, values);
      } else if (at < 0 && p.grad_initial_state.data != nullptr) {
        for (int i = 0; i < kCount; ++i) {
          static_cast<T*>(p.grad_initial_state.data)[p.grad_initial_state.offset(walk.n, walk.channel + i, t)] =
              from_float<T>(values[i]);
        }
      }
    }
  }
  const int64_t first = walk.slab * s.channels;
  if (p.bias_partials != nullptr) {
    sum_walkers<kCount>(shared, bias_sums, walk, s.channels,
                        [&](int64_t channel) { return partial_of(p.bias_partials, first + channel); });
  }
  if (p.weight_partials == nullptr) return;
#pragma unroll
  for (int k = 0; k < width; ++k) {
    float values[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = sums.at(k, i);
    sum_walkers<kCount>(shared, values, walk, s.channels,
                        [&](int64_t channel) { return partial_of(p.weight_partials, (first + channel) * width + k); });
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

template <class T>
void launch_backward(const CausalConvBackwardParams& params, Stream stream) {
  const CausalConvShape& s = params.shape;
  // Four channels beside each other: windows, weights and sums of more would not fit the registers.
  constexpr int kPack = kPackSize<T>, kLastPack = kPackSize<float>;
  const int64_t pack = s.channels_last ? kLastPack : kPack, bytes = pack * static_cast<int64_t>(sizeof(T));
  bool packs = (s.channels_last ? s.channels : s.length) % pack == 0;
  for (const Sequences* t : {&params.input, &params.grad_input}) {
    packs = packs && fits_conv_packs(*t, s.channels_last, pack, bytes);
  }
  packs = packs && (s.channels_last || fits_conv_packs(params.grad_output, false, pack, bytes));
  if (s.channels_last) {
    return visit_conv_kernel<kLastPack, 1>(s.width, packs, [&](auto width, auto count) {
      const auto blocks = static_cast<unsigned>(Walk<count()>::blocks(s));
      launch("causal_conv_last_backward", causal_conv_last_backward_kernel<T, width(), count()>,
             {dim3(blocks), dim3(kConvThreads), stream}, params);
    });
  }
  visit_conv_kernel<kPack, kPack>(s.width, packs, [&](auto width, auto count) {
    const auto blocks = static_cast<unsigned>((s.slabs() * s.channels + kConvWarps - 1) / kConvWarps);
    launch("causal_conv_backward", causal_conv_backward_kernel<T, width(), count()>,
           {dim3(blocks), dim3(kConvThreads), stream}, params);
  });
}

}  // namespace

void causal_conv_backward(const CausalConvBackwardParams& params, Stream stream) {
  const CausalConvShape& s = params.shape;
  visit_float(s.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (s.batch * s.channels > 0) launch_backward<T>(params, stream);
    if (params.grad_weight != nullptr) {
      sum_partials<T>(params.weight_partials, params.grad_weight, s.slabs(), s.channels * s.width, stream);
    }
    if (params.grad_bias != nullptr) {
      sum_partials<T>(params.bias_partials, params.grad_bias, s.slabs(), s.channels, stream);
    }
  });
}

}  // namespace warpwright::cuda
