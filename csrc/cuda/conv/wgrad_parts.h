// The weight's gradient in parts: each block sums over some of the pixels, and a second kernel adds the parts up in
// order. No atomics: the same bits every time. Into how many parts follows from the sizes alone (weight_parts of
// kernels/gemm_plan.h), so the bits are the same on every device too, unless `warpwright tune` measured others.

#pragma once

#include "kernels/conv.h"

namespace warpwright::cuda {

struct WgradParams {
  ConvParams conv;
  float* partials;  // (splits, filters, taps * channels / groups), or null with one split
  int splits;

  // (splits, filters) of the bias's gradient.
  WARPWRIGHT_HOST_DEVICE float* bias_partials() const {
    if (partials == nullptr) return nullptr;
    return partials + splits * conv.filters * conv.group_channels() * conv.taps();
  }
};

// The parts that are wanted, at least one and no more than partial results of 64 MiB allow.
int allowed_splits(const ConvParams& params, int64_t wanted);

// Adds up the partial results of more than one part.
void reduce_wgrad(const WgradParams& params, Stream stream);

}  // namespace warpwright::cuda
