// The tensor cores' grouped products for float16 and bfloat16 operands that cp.async can copy; grouped.cu sends the
// others elsewhere.

#pragma once

#include "kernels/grouped.h"

namespace warpwright::cuda {

// Whether the operands are 16-bit, start every line at a multiple of 16 bytes, the elements of a token lie
// together, and so do the weight's rows or columns.
bool grouped_mma_takes(const GroupedParams& params);
void grouped_mma(const GroupedParams& params, Stream stream);

bool grouped_weight_grad_mma_takes(const GroupedWeightGradParams& params);
void grouped_weight_grad_mma(const GroupedWeightGradParams& params, Stream stream);

}  // namespace warpwright::cuda
