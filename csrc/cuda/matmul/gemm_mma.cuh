// The tensor cores' product for float16 and bfloat16 operands that cp.async can copy; gemm.cu sends the others
// elsewhere.

#pragma once

#include "kernels/matmul.h"

namespace warpwright::cuda {

// Whether both operands are 16-bit, have one dimension of stride 1, and start every line at a multiple of 16 bytes.
bool gemm_mma_takes(const GemmParams& params);
void gemm_mma(const GemmParams& params, Stream stream);

}  // namespace warpwright::cuda
