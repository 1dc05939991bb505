// Hopper's grouped products for float16 and bfloat16 matrices that TMA can copy; grouped.cu sends the others elsewhere.

#pragma once

#include "kernels/grouped.h"

namespace warpwright::cuda {

// Whether the current device has wgmma, all matrices are 16-bit and start every line at a multiple of 16 bytes, the
// rows of the groups lie together, so do the weight's rows or columns, and there may be enough tiles to go round.
bool grouped_wgmma_takes(const GroupedParams& params);
void grouped_wgmma(const GroupedParams& params, Stream stream);

bool grouped_weight_grad_wgmma_takes(const GroupedWeightGradParams& params);
void grouped_weight_grad_wgmma(const GroupedWeightGradParams& params, Stream stream);

}  // namespace warpwright::cuda
