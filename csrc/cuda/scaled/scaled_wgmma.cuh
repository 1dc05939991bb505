// Hopper's product of 8-bit matrices that TMA can copy; scaled.cu sends the others elsewhere.

#pragma once

#include "kernels/scaled.h"

namespace warpwright::cuda {

// Whether the current device has wgmma, all matrices' rows lie together and start at multiples of 16 bytes, and the
// output has 16 bits.
bool scaled_wgmma_takes(const ScaledMatmulParams& params);
void scaled_wgmma(const ScaledMatmulParams& params, Stream stream);

}  // namespace warpwright::cuda
