// Causal convolutions: each input is read once, and each output written once.
//
// Where positions are neighbours in memory a warp takes a slab of one channel, tile by tile, and its lanes find what
// their neighbours read in shared memory. Where channels are, a thread takes a pack of them and walks along the
// positions with the values under the taps in its registers. Long sequences are cut into slabs, so that few channels
// fill a GPU too.

#include "cuda/causal_conv/windows.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

__device__ __forceinline__ float silu_or_same(bool silu, float x) { return silu ? activate(Activation::kSilu, x) : x; }

// machine code: 1>: plain; else: 16-byte
template <class T, int kWidth, int kCount>
__global__ void __launch_bounds__(kConvThreads) causal_conv_kernel(const CausalConvParams p) {
  using Ring = RowRing<kCount>;
  __shared__ typename Ring::Rows rows[kConvWarps];
  const CausalConvShape& s = p.shape;
  const int width = kWidth == 0 ? static_cast<int>(s.width) : kWidth, before = width - 1;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kConvWarps + warp;
  if (unit >= s.slabs() * s.channels) return;
  const int64_t row = unit / s.per_sample(), first = unit % s.per_sample() * s.slab();
  const int64_t n = row / s.channels, c = row % s.channels;
  const int positions = static_cast<int>(s.slab_positions(first));
  const Ring ring{rows[warp]};
  const T* input = static_cast<const T*>(p.input.data) + p.input.offset(n, c, first);
  T* output = static_cast<T*>(p.output.data) + p.output.offset(n, c, first);
  const T* weight = static_cast<const T*>(p.weight) + c * width;
  const float bias = bias_of<T>(p.bias, c);
  if (lane < before) {
    const int64_t t = first + lane - before;
    ring.at(lane - before) = to_float(sequence_value<T>(p.input, p.initial_state, width, n, c, t));
  }
  for (int tile = 0; tile < positions; tile += Ring::kTile) {
    const int q = tile + lane * kCount;
    float values[kCount]{};
    if (q < positions) load_floats<T, kCount>(input + q * p.input.position, values);
    __syncwarp();  // Nobody still reads the tile that this one replaces.
#pragma unroll
    for (int i = 0; i < kCount; ++i) ring.at(q + i) = values[i];
    __syncwarp();
    if (q >= positions) continue;
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = bias;
    for_each_tap<kWidth, kCount>(ring, q - before, width, [&](int k, const float (&x)[kCount]) {
      const float tap = to_float(weight[k]);
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] += tap * x[i];
    });
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = silu_or_same(s.silu, values[i]);
    store_floats<T, kCount>(output + q * p.output.position, values);
  }
  if (p.final_state.data == nullptr || first + positions < s.length || lane >= before) return;
  static_cast<T*>(p.final_state.data)[p.final_state.offset(n, c, lane)] =
      sequence_value<T>(p.input, p.initial_state, width, n, c, s.length - before + lane);
}

// machine code: 1>: plain; else: 16-byte
template <class T, int kWidth, int kCount>
__global__ void __launch_bounds__(kConvThreads) causal_conv_last_kernel(const CausalConvParams p) {
  using Values = Window<kWidth, kCount>;
  constexpr int kAhead = 2;  // Positions whose values are asked for before the first is used.
  static_assert(kConvWalk % kAhead == 0, "a walk is made of whole steps, but for the last one");
  __shared__ float shared[Values::kSharedFloats < 1 ? 1 : Values::kSharedFloats];
  const CausalConvShape& s = p.shape;
  const int width = kWidth == 0 ? static_cast<int>(s.width) : kWidth, before = width - 1;
  const Walk<kCount> walk(s);
  if (!walk.active) return;
  const ChannelTaps<T, kWidth, kCount> taps(p.weight, walk.channel, width);
  float bias[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) bias[i] = bias_of<T>(p.bias, walk.channel + i);
  Values window(shared, width);
  for (int64_t t = walk.first - before; t < walk.first; ++t) {
    float values[kCount];
    load_sequence<T, kCount>(p.input, p.initial_state, width, walk, t, values);
    window.push(values);
  }
  const T* input = static_cast<const T*>(p.input.data) + p.input.offset(walk.n, walk.channel, 0);
  T* output = static_cast<T*>(p.output.data) + p.output.offset(walk.n, walk.channel, 0);
  for (int64_t t = walk.first; t < walk.last; t += kAhead) {
    float values[kAhead][kCount];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (t + a < walk.last) load_floats<T, kCount>(input + (t + a) * p.input.position, values[a]);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (t + a >= walk.last) continue;
      window.push(values[a]);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        float sum = bias[i];
#pragma unroll
        for (int k = 0; k < width; ++k) sum += taps.at(k, i) * window.at(k, i);
        values[a][i] = silu_or_same(s.silu, sum);
      }
      store_floats<T, kCount>(output + (t + a) * p.output.position, values[a]);
    }
  }
  if (p.final_state.data == nullptr || walk.last < s.length) return;
  for (int j = 0; j < before; ++j) {
    for (int i = 0; i < kCount; ++i) {
      static_cast<T*>(p.final_state.data)[p.final_state.offset(walk.n, walk.channel + i, j)] =
          sequence_value<T>(p.input, p.initial_state, width, walk.n, walk.channel + i, s.length - before + j);
    }
  }
}

// A thread takes a channel of one sequence: outputs first, then the state moves on, the elements that are read from
// further on before those that are written.
// machine code: plain
template <class T>
__global__ void __launch_bounds__(kConvThreads) causal_conv_update_kernel(const CausalConvUpdateParams p) {
  const auto per_sequence = static_cast<unsigned>((p.channels + kConvThreads - 1) / kConvThreads);
  const int64_t n = blockIdx.x / per_sequence;
  const int64_t c = static_cast<int64_t>(blockIdx.x % per_sequence) * kConvThreads + threadIdx.x;
  if (c >= p.channels) return;
  const int64_t slot = p.slot(n);
  const int before = static_cast<int>(p.width) - 1;
  T* output = static_cast<T*>(p.output.data) + p.output.offset(n, c, 0);
  if (slot < 0 || slot >= p.slots) {
    const float value = slot < 0 ? 0.0f : __int_as_float(0x7fffffff);
    for (int64_t step = 0; step < p.steps; ++step) output[step * p.output.position] = from_float<T>(value);
    return;
  }
  T* state = static_cast<T*>(p.state.data) + p.state.offset(slot, c, 0);
  const T* input = static_cast<const T*>(p.input.data) + p.input.offset(n, c, 0);
  const T* weight = static_cast<const T*>(p.weight) + c * p.width;
  const auto value = [&](int64_t j) {
    return j < before ? state[j * p.state.position] : input[(j - before) * p.input.position];
  };
  for (int64_t step = 0; step < p.steps; ++step) {
    float sum = bias_of<T>(p.bias, c);
#pragma unroll 4
    for (int k = 0; k <= before; ++k) sum += to_float(weight[k]) * to_float(value(step + k));
    output[step * p.output.position] = from_float<T>(silu_or_same(p.silu, sum));
  }
  for (int j = 0; j < before; ++j) state[j * p.state.position] = value(j + p.steps);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void causal_conv_forward(const CausalConvParams& params, Stream stream) {
  const CausalConvShape& s = params.shape;
  if (s.batch * s.channels == 0) return;
  visit_float(s.dtype, [&](auto tag) {
    using T = decltype(tag);
    constexpr int kPack = kPackSize<T>;
    bool packs = (s.channels_last ? s.channels : s.length) % kPack == 0;
    for (const Sequences* t : {&params.input, &params.output}) {
      packs = packs && fits_conv_packs(*t, s.channels_last, kPack, kPackBytes);
    }
    if (s.channels_last) {
      return visit_conv_kernel<kPack, 1>(s.width, packs, [&](auto width, auto count) {
        const auto blocks = static_cast<unsigned>(Walk<count()>::blocks(s));
        launch("causal_conv_last", causal_conv_last_kernel<T, width(), count()>,
               {dim3(blocks), dim3(kConvThreads), stream}, params);
      });
    }
    visit_conv_kernel<kPack, kPack>(s.width, packs, [&](auto width, auto count) {
      const auto blocks = static_cast<unsigned>((s.slabs() * s.channels + kConvWarps - 1) / kConvWarps);
      launch("causal_conv", causal_conv_kernel<T, width(), count()>, {dim3(blocks), dim3(kConvThreads), stream},
             params);
    });
  });
}

void causal_conv_update(const CausalConvUpdateParams& params, Stream stream) {
  const int64_t blocks = params.batch * ((params.channels + kConvThreads - 1) / kConvThreads);
  visit_float(params.dtype, [&](auto tag) {
    launch("causal_conv_update", causal_conv_update_kernel<decltype(tag)>,
           {dim3(static_cast<unsigned>(blocks)), dim3(kConvThreads), stream}, params);
  });
}

}  // namespace warpwright::cuda
