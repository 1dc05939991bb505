// Depthwise convolutions on CUDA cores, any dtype. conv.cu sends everything else elsewhere.

#pragma once

#include "kernels/conv.h"

namespace warpwright::cuda {

// Whether a convolution is one for these kernels: a filter for each channel, and a height (a length, where there is one
// dimension) of at most 64 taps, which are kept in shared memory.
bool depthwise_takes(const ConvParams& params);

void depthwise_fprop(const ConvParams& params, Stream stream);
void depthwise_dgrad(const ConvParams& params, Stream stream);
// With splits `partials` holds what conv.h says.
int depthwise_wgrad_splits(const ConvParams& params);
void depthwise_wgrad(const ConvParams& params, float* partials, int splits, Stream stream);

}  // namespace warpwright::cuda
