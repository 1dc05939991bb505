// The product of 8-bit matrices for every GPU, any strides, sizes and alignment.

#pragma once

#include "kernels/scaled.h"

namespace warpwright::cuda {

void scaled_mma(const ScaledMatmulParams& params, Stream stream);

}  // namespace warpwright::cuda
