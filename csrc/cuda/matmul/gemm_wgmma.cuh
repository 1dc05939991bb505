// Hopper's product for float16 and bfloat16 matrices that TMA can copy; gemm.cu sends the others elsewhere.

#pragma once

#include "kernels/matmul.h"

namespace warpwright::cuda {

// Whether the current device has wgmma, all matrices are 16-bit, have one dimension of stride 1 and start every line at
// a multiple of 16 bytes, and the output has enough tiles to go round.
bool gemm_wgmma_takes(const GemmParams& params);
void gemm_wgmma(const GemmParams& params, Stream stream);

}  // namespace warpwright::cuda
