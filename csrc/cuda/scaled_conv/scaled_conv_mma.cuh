// Convolutions of 8-bit tensors on the tensor cores (sm_80 and later).

#pragma once

#include "kernels/scaled_conv.h"

namespace warpwright::cuda {

// Whether groups have more than a few channels and filters: a tile of products would be nearly empty.
bool scaled_conv_mma_takes(const ScaledConvParams& params);
void scaled_conv_mma(const ScaledConvParams& params, Stream stream);

}  // namespace warpwright::cuda
