// Convolutions on the tensor cores (sm_80 and later): of 16-bit tensors, and of float32 ones as TF32. conv.cu sends
// everything else elsewhere.

#pragma once

#include "kernels/conv.h"

namespace warpwright::cuda {

// Whether a convolution is one for the tensor cores: not float32 in IEEE arithmetic, and groups of more than a few
// channels.
bool conv_mma_takes(const ConvParams& params);

// Rows of the tile that conv_fprop_mma takes.
int64_t conv_fprop_mma_rows(const ConvParams& params);
void conv_fprop_mma(const ConvParams& params, Stream stream);
void conv_dgrad_mma(const ConvParams& params, Stream stream);
int conv_wgrad_mma_splits(const ConvParams& params);
// With splits `partials` holds what conv.h says.
void conv_wgrad_mma(const ConvParams& params, float* partials, int splits, Stream stream);

}  // namespace warpwright::cuda
