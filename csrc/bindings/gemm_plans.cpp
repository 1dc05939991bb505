// The model of kernels/gemm_plan.h for Python, which asks it on machines without a GPU, too.

#include "bindings/backend.h"

#if defined(WARPWRIGHT_BACKEND_CPU)

#include "kernels/gemm_plan.h"

// Writes at most `capacity` plans for the product, the one that should be fastest first; returns how many there are.
extern "C" __attribute__((visibility("default"))) int warpwright_gemm_plans(const warpwright::GemmQuestion* question,
                                                                            warpwright::GemmPlan* plans, int capacity) {
  const auto found = warpwright::gemm_plans(*question);
  std::copy_n(found.begin(), std::min<size_t>(found.size(), static_cast<size_t>(capacity)), plans);
  return static_cast<int>(found.size());
}

#endif
