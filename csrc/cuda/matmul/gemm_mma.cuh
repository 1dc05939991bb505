// The tensor cores' product by mma.sync (sm_80 and later): float16 and bfloat16 operands that cp.async can copy, and
// float32 ones as TF32. plan.cuh chooses; gemm.cu sends what these do not take elsewhere.

#pragma once

#include "cuda/matmul/split_k.cuh"

namespace warpwright::cuda {

// Whether both operands are 16-bit, have one dimension of stride 1, and start every line at a multiple of 16 bytes.
bool gemm_mma_takes(const GemmParams& params);
// By the plan's tile: 128 x 128, 64 x 64 or 16 x 128, the last for A along K only.
void gemm_mma(const GemmParams& params, const GemmPlan& plan, float* partials, Stream stream);

// Whether the operands are float32 of TF32 or 3xTF32 precision and have one dimension of stride 1 each.
bool gemm_tf32_takes(const GemmParams& params);
void gemm_tf32(const GemmParams& params, int splits, float* partials, Stream stream);

}  // namespace warpwright::cuda
