// Convolutions on Hopper's tensor cores (sm_90a), of 16-bit tensors that lie channels last and that TMA can read;
// conv.cu sends the others elsewhere.

#pragma once

#include "kernels/conv.h"

namespace warpwright::cuda {

// Whether the forward product, or the input's gradient, is one for Hopper: one group, channels and strides in multiples
// of 16 bytes, at least half a span of 64 channels to sum over, results and residual of which each pixel lies a step
// from the one before, what an im2col map allows of paddings, strides and filters, strides up to 4 of a gradient, and
// tiles for half of the multiprocessors.
bool conv_fprop_wgmma_takes(const ConvParams& params);
int64_t conv_fprop_wgmma_rows();  // Of the tile that conv_fprop_wgmma takes where it leaves statistics.
void conv_fprop_wgmma(const ConvParams& params, Stream stream);
bool conv_dgrad_wgmma_takes(const ConvParams& params);
void conv_dgrad_wgmma(const ConvParams& params, Stream stream);

// The same of the weight's gradient, of at least 32 filters, whose parts are blocks for half of the multiprocessors.
bool conv_wgrad_wgmma_takes(const ConvParams& params);
int conv_wgrad_wgmma_splits(const ConvParams& params);
// With splits `partials` holds what conv.h says.
void conv_wgrad_wgmma(const ConvParams& params, float* partials, int splits, Stream stream);

}  // namespace warpwright::cuda
