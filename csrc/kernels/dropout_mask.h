// Dropout as the Params of several families carry it.

#pragma once

#include "kernels/philox.h"

namespace warpwright {

// An element is kept where its word of kernels/philox.h is at least `threshold`, and then multiplied by `scale`.
struct Dropout {
  const void* seed;  // One int64, where the kernel runs; null without dropout.
  int64_t offset;
  uint32_t threshold;
  double scale;  // 1 / (1 - p), 0 where p is 1.
};

}  // namespace warpwright
