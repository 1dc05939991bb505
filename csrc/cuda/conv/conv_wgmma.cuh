// Convolutions on Hopper's tensor cores (sm_90a), of 16-bit tensors that lie channels last and that TMA can read;
// conv.cu sends the others elsewhere.

#pragma once

#include "kernels/conv.h"

namespace warpwright::cuda {

// Whether the forward product, or the input's gradient, is one for Hopper: one group, channels and strides in multiples
// of 16 bytes, at least half a span of 64 channels to sum over, results and residual of which each pixel lies a step
// from the one before, what an im2col map allows of paddings, strides and filters, and strides up to 4 of a gradient.
bool conv_fprop_wgmma_takes(const ConvParams& params);
bool conv_dgrad_wgmma_takes(const ConvParams& params);
// The same of the weight's gradient, of at least 32 filters.
bool conv_wgrad_wgmma_takes(const ConvParams& params);

// By a tile out of kConvShapes of kernels/gemm_plan.h; where statistics are left, by one that does.
void conv_fprop_wgmma(const ConvParams& params, const GemmPlan& plan, Stream stream);
void conv_dgrad_wgmma(const ConvParams& params, const GemmPlan& plan, Stream stream);
// By a tile out of kWeightShapes. With splits `partials` holds what conv.h says.
void conv_wgrad_wgmma(const ConvParams& params, const GemmPlan& plan, float* partials, Stream stream);

}  // namespace warpwright::cuda
