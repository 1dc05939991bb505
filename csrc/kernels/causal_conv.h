// Params and launchers of the causal_conv family: depthwise convolutions along a sequence whose outputs see their own
// and earlier inputs alone.
//
// A channel's sequence x goes on before its first input: x[t] = input[t], and for t < 0 it is the initial state's
// element t + width - 1, or 0 where there is none.
//   preact[t] = bias + sum over k of weight[k] * x[t - (width - 1) + k]
//
// Gradients of weights have two stages: a slab, some neighbouring positions of one sample, gives one partial sum for
// each channel and tap, and the slabs' sums are added in order. How slabs are cut depends on the layout alone.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// A warp's lanes hold what came before a tile, or the state.
inline constexpr int64_t kMaxConvWidth = 32;

// Positions of a slab: long beside the width, because what a slab shares with the next is computed in both.
inline constexpr int64_t kConvSlab = 1024, kConvLastSlab = 256;

// A tensor (batch, channels, positions), any strides; of some only these three are read. Strides count elements.
struct Sequences {
  void* data = nullptr;
  int64_t batch = 0, channel = 0, position = 0;

  WARPWRIGHT_HOST_DEVICE int64_t offset(int64_t n, int64_t c, int64_t at) const {
    return n * batch + c * channel + at * position;
  }
};

struct CausalConvShape {
  int64_t batch, channels, length, width;
  bool channels_last;  // Channels of the input lie closer than its positions.
  bool silu;
  DType dtype;

  WARPWRIGHT_HOST_DEVICE int64_t slab() const { return channels_last ? kConvLastSlab : kConvSlab; }
  // At least one: a sequence without inputs still has a state.
  WARPWRIGHT_HOST_DEVICE int64_t per_sample() const { return length == 0 ? 1 : (length + slab() - 1) / slab(); }
  WARPWRIGHT_HOST_DEVICE int64_t slabs() const { return batch * per_sample(); }
  WARPWRIGHT_HOST_DEVICE int64_t slab_positions(int64_t first) const {
    return length - first < slab() ? length - first : slab();
  }
};

// States are (batch, channels, width - 1), with null data where there is none.
struct CausalConvParams {
  CausalConvShape shape;
  Sequences input, initial_state, output, final_state;
  const void *weight, *bias;  // (channels, width) and (channels), contiguous; bias may be null.
};

struct CausalConvBackwardParams {
  CausalConvShape shape;
  Sequences input, initial_state, grad_output, grad_final_state;
  const void *weight, *bias;
  Sequences grad_input, grad_initial_state;  // Data is null where it is not wanted.
  void *grad_weight, *grad_bias;             // The same.
  void *weight_partials, *bias_partials;     // (slabs, channels, width), (slabs, channels) float, double for float64
};

// A few steps on a state that is written to: (slots, channels, width - 1). Sequence n has slot indices[n], or n without
// indices. One with a negative index is padding, whose output is 0; past the last slot there is none, and it is NaN.
struct CausalConvUpdateParams {
  Sequences state, input, output;
  const void *weight, *bias, *indices;
  int64_t slots, batch, channels, steps, width, index_stride;
  bool silu;
  DType dtype, index_dtype;

  WARPWRIGHT_HOST_DEVICE int64_t slot(int64_t n) const {
    if (indices == nullptr) return n;
    return index_dtype == DType::kInt64 ? static_cast<const int64_t*>(indices)[n * index_stride]
                                        : static_cast<const int32_t*>(indices)[n * index_stride];
  }
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(causal_conv_forward, CausalConvParams)
WARPWRIGHT_DECLARE_LAUNCHER(causal_conv_backward, CausalConvBackwardParams)
WARPWRIGHT_DECLARE_LAUNCHER(causal_conv_update, CausalConvUpdateParams)
