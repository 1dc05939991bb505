// Params and launchers of the channel norms: group, batch and instance norm are one pair of kernels. A tensor is seen
// as (samples, channels, positions), and statistics belong to a cell: a group of channels of one sample, or, shared by
// all samples (batch norm), a group of channels.
//
// Every sum has two stages, so that it comes out bitwise equal every time: a slab, some neighbouring positions of one
// sample, gives one partial result for each channel; the partial results of a cell are then added in order. How slabs
// are cut depends on the shape alone, and with statistics of their own a sample's slabs do not depend on the others.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// A tensor (samples, channels, positions). Strides count elements.
struct Planes {
  void* data = nullptr;
  int64_t sample = 0, channel = 0, position = 0;

  WARPWRIGHT_HOST_DEVICE int64_t offset(int64_t n, int64_t c, int64_t at) const {
    return n * sample + c * channel + at * position;
  }
};

// One value a channel, contiguous: of the tensors' dtype, or `wide`: float (double for float64). Null where there is
// none.
struct PerChannel {
  void* data = nullptr;
  bool wide = false;
};

struct ChannelShape {
  int64_t samples, channels, positions, groups;
  bool shared;         // Statistics: of all samples together, or of each.
  bool channels_last;  // Neighbours in memory are channels; else positions.
  int64_t slab;        // Positions of a slab.
  int64_t per_sample;  // Slabs of a sample.

  WARPWRIGHT_HOST_DEVICE int64_t group_channels() const { return channels / groups; }
  WARPWRIGHT_HOST_DEVICE int64_t slabs() const { return samples * per_sample; }
  WARPWRIGHT_HOST_DEVICE int64_t first_position(int64_t index) const { return index % per_sample * slab; }
  WARPWRIGHT_HOST_DEVICE int64_t slab_positions(int64_t index) const {
    const int64_t rest = positions - first_position(index);
    return rest < slab ? rest : slab;
  }

  // Batch norm: what is summed over a cell is a channel's gradient.
  WARPWRIGHT_HOST_DEVICE bool cells_are_channels() const { return shared && groups == channels; }
  WARPWRIGHT_HOST_DEVICE int64_t cells() const { return shared ? groups : samples * groups; }
  // The cell of a channel is this plus the channel's group.
  WARPWRIGHT_HOST_DEVICE int64_t first_cell(int64_t sample) const { return shared ? 0 : sample * groups; }
  WARPWRIGHT_HOST_DEVICE int64_t cell_first_slab(int64_t cell) const { return shared ? 0 : cell / groups * per_sample; }
  WARPWRIGHT_HOST_DEVICE int64_t cell_slabs() const { return shared ? slabs() : per_sample; }
  WARPWRIGHT_HOST_DEVICE int64_t cell_first_channel(int64_t cell) const { return cell % groups * group_channels(); }
  WARPWRIGHT_HOST_DEVICE int64_t cell_elements() const { return group_channels() * positions * (shared ? samples : 1); }
};

// Long enough to be worth a partial result, short enough that there are slabs for every multiprocessor, and that a
// processor's cache holds one. Where channels are neighbours a large tensor has longer ones: it has more channels to a
// slab, and the second stage more to add; all are about as long, because the last to be done is waited for.
inline constexpr int64_t kPlaneSlab = 2048, kLeastSlab = 128, kMostSlab = 512, kWantedSlabs = 64, kSlabStep = 8;
inline int64_t slab_size(int64_t positions, bool channels_last) {
  if (!channels_last) return kPlaneSlab;
  const int64_t wanted = (positions / kWantedSlabs + kLeastSlab - 1) / kLeastSlab * kLeastSlab;
  const int64_t most = wanted < kLeastSlab ? kLeastSlab : wanted > kMostSlab ? kMostSlab : wanted;
  const int64_t slabs = positions <= most ? 1 : (positions + most - 1) / most;
  const int64_t steps = (positions + slabs * kSlabStep - 1) / (slabs * kSlabStep);
  return (steps < 1 ? 1 : steps) * kSlabStep;
}

// output = activation((input - mean) * rstd * weight + bias + residual).
struct ChannelNormParams {
  ChannelShape shape;
  Planes input, residual, output;         // Of residual data is null without one.
  PerChannel weight, bias;                // (channels)
  PerChannel running_mean, running_var;   // (channels)
  PerChannel new_mean, new_var;           // What becomes of them; null where that is not wanted.
  bool constant;                          // The running statistics take the place of the input's own.
  void *mean, *rstd;                      // (cells) float, double for float64
  void* moments;                          // In their place, of channel_norm_moments: (3, channels) mean, var, count.
  void *mean_partials, *square_partials;  // (slabs, channels) float or double: means, and squared differences to them.
  double eps, momentum;
  Activation activation;  // None, relu or silu.
  DType dtype;
};

struct ChannelNormBackwardParams {
  ChannelShape shape;
  Planes grad_output, input, residual;
  PerChannel weight, bias;
  const void *mean, *rstd;             // (cells)
  bool constant;                       // The statistics are not the input's own.
  Planes grad_input, grad_residual;    // Data is null where it is not wanted.
  PerChannel grad_weight, grad_bias;   // The same.
  void *grad_partials, *dot_partials;  // (slabs, channels): sums of the gradient, and of its product with xhat.
  void *mean_grad, *mean_dot;          // (cells): the same over a cell, times weight, divided by its elements.
  // (cells), or null: then mean_grad and mean_dot came with the call, and are sums over so many elements of this tensor
  // and of others elsewhere, neither multiplied nor divided.
  const void* elements;
  Activation activation;
  DType dtype;

  // Whether the first two stages have anything to do.
  WARPWRIGHT_HOST_DEVICE bool needs_means() const { return grad_input.data != nullptr && !constant; }
  WARPWRIGHT_HOST_DEVICE bool finds_means() const { return needs_means() && elements == nullptr; }
  WARPWRIGHT_HOST_DEVICE bool needs_sums() const {
    return finds_means() || grad_weight.data != nullptr || grad_bias.data != nullptr;
  }
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(channel_norm_forward, ChannelNormParams)
WARPWRIGHT_DECLARE_LAUNCHER(channel_norm_backward, ChannelNormBackwardParams)
// Of a batch norm: the input's own moments alone.
WARPWRIGHT_DECLARE_LAUNCHER(channel_norm_moments, ChannelNormParams)

namespace warpwright::cuda {
// The stages of channel_norm_forward, for ops that have one of them elsewhere: a convolution leaves the partial results
// of its output, cut into other slabs than the output's own.
void channel_norm_slabs(const ChannelNormParams& params, Stream stream);
void channel_norm_cells(const ChannelNormParams& params, Stream stream);
void channel_norm_output(const ChannelNormParams& params, Stream stream);
}  // namespace warpwright::cuda
