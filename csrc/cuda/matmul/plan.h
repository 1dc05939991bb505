// The choice among the plans of kernels/gemm_plan.h, of a matrix product or of a convolution.

#pragma once

#include "kernels/gemm_plan.h"

namespace warpwright::cuda {

// What was measured to be the fastest, where it was, else what should be.
GemmPlan chosen_plan(const GemmQuestion& question);

}  // namespace warpwright::cuda
