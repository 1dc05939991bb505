// The gated products on the tensor cores, for float16 and bfloat16 operands that cp.async can copy; gated.cu sends the
// others elsewhere.

#pragma once

#include "kernels/gated.h"

namespace warpwright::cuda {

// Whether input and weights are 16-bit, have one dimension of stride 1, the weights the same one, and start every line
// at a multiple of 16 bytes.
bool gated_mma_takes(const GatedParams& params);
void gated_mma(const GatedParams& params, Stream stream);

}  // namespace warpwright::cuda
