// Hopper's gated products for float16 and bfloat16 matrices that TMA can copy; gated.cu sends the others elsewhere.

#pragma once

#include "kernels/gated.h"

namespace warpwright::cuda {

// Whether the current device has wgmma, all matrices are 16-bit, have one dimension of stride 1, the weights the same
// one, and start every line at a multiple of 16 bytes, and the output has enough tiles to go round.
bool gated_wgmma_takes(const GatedParams& params);
void gated_wgmma(const GatedParams& params, Stream stream);

}  // namespace warpwright::cuda
