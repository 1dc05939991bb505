// Calls to torch's own operators through the stable dispatcher.

#pragma once

#include <algorithm>
#include <array>

#include "bindings/common.h"

namespace warpwright::onednn {

// Calls `op` (say, "aten::linear") and gives the first `kOutputs` of its results.
template <size_t kOutputs, class... Args>
std::array<Tensor, kOutputs> call_aten(const char* op, const char* overload, const Args&... args) {
  std::array<StableIValue, std::max(sizeof...(Args), kOutputs)> stack{torch::stable::detail::from(args)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, kOutputs> results;
  for (size_t i = 0; i < kOutputs; ++i) results[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return results;
}

}  // namespace warpwright::onednn
