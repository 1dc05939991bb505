// What the bindings of the channel norms share with ops that make what they normalise. bindings/channel_norm.cpp
// defines it, for every backend.

#pragma once

#include "bindings/common.h"
#include "kernels/channel_norm.h"

namespace warpwright {

Activation norm_activation(const char* op, const std::string& name);
void check_norm_input(const char* op, const Tensor& input);
// A cell's statistics, in the dtype that the input is computed in.
void check_norm_statistics(const char* op, const char* name, const Tensor& tensor, const Tensor& input, int64_t cells);
// One value a channel, of the input's dtype or of the one that it is computed in.
void check_channels(const char* op, const char* name, const OptionalTensor& tensor, const Tensor& input,
                    int64_t channels);
// Of a tensor (batch, channels, ...).
void check_channels(const char* op, const char* name, const OptionalTensor& tensor, const Tensor& input);

// Of a tensor (channels,), contiguous, or none; `dtype` is the input's.
PerChannel per_channel(const OptionalTensor& tensor, ScalarType dtype);

struct Affine {
  OptionalTensor weight, bias;
};

struct Running {
  OptionalTensor mean, var;
  bool constant = false;  // They take the place of the input's own statistics.
  double momentum = 0;
};

// Partial results (slabs, channels) that came with the input of a batch norm: of each `slab` positions, in any order
// over all samples, their mean and the squared differences to it. With a slab of 0 there are none.
struct SlabStatistics {
  Tensor means, squares;
  int64_t slab = 0;
};

struct NormOutput {
  Tensor output, mean, rstd, new_mean, new_var;
};

// With `in_place` the output takes the place of the input, which has no gaps.
NormOutput batch_norm_forward(const Tensor& input, const Affine& affine, const Running& running,
                              const OptionalTensor& residual, double eps, Activation activation,
                              const SlabStatistics* found = nullptr, bool in_place = false);

// (3, channels): mean, variance and number of a batch norm's elements, for others to join to theirs.
Tensor batch_norm_moments(const Tensor& input, const SlabStatistics* found = nullptr);

struct NormNeeds {
  bool input, weight, bias, residual;
};

struct NormGrads {
  Tensor grad_input, grad_weight, grad_bias, grad_residual;
};

// (2, channels), contiguous: a channel's sums of the gradient and of its product with xhat. In place of the gradients
// of bias and weight they are `found`, or they were `given`, over so many `elements`, here and elsewhere.
struct ChannelSums {
  Tensor* found = nullptr;
  const Tensor *given = nullptr, *elements = nullptr;
};

NormGrads batch_norm_grads(const Tensor& grad_output, const Tensor& input, const Affine& affine,
                           const OptionalTensor& residual, const Tensor& mean, const Tensor& rstd, bool constant,
                           Activation activation, const NormNeeds& need, const ChannelSums& sums = {});

}  // namespace warpwright
