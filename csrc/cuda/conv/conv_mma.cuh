// Convolutions on the tensor cores (sm_80 and later): of 16-bit tensors, and of float32 ones as TF32. conv.cu sends
// everything else elsewhere.

#pragma once

#include "kernels/conv.h"

namespace warpwright::cuda {

// Whether a convolution is one for the tensor cores: not float32 in IEEE arithmetic, and groups of more than a few
// channels.
bool conv_mma_takes(const ConvParams& params);

// Whether all that a product reads comes in vectors of 16 bytes.
bool conv_in_vectors(const ConvParams& params, GemmRole role);

// By the plan's tile: 128 x 128 or 64 x 64 of 16-bit elements; float32 has one.
void conv_fprop_mma(const ConvParams& params, const GemmPlan& plan, Stream stream);
void conv_dgrad_mma(const ConvParams& params, const GemmPlan& plan, Stream stream);
// With splits `partials` holds what conv.h says.
void conv_wgrad_mma(const ConvParams& params, const GemmPlan& plan, float* partials, Stream stream);

}  // namespace warpwright::cuda
