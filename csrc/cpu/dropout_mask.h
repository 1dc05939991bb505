// What dropout multiplies the elements of a row by.

#pragma once

#include "cpu/philox.h"
#include "kernels/dropout_mask.h"

WARPWRIGHT_ISA_BEGIN

// `scale` or 0 for each element of row `row`, written to `factors`; null without dropout.
template <class A>
inline const A* dropout_factors(const Dropout& dropout, int64_t row, int64_t cols, A* factors) {
  if (dropout.seed == nullptr) return nullptr;
  const int64_t seed = *static_cast<const int64_t*>(dropout.seed);
  const A scale = A(dropout.scale);
  constexpr int64_t kStep = kPhiloxWords * kFloatLanes;
  for (int64_t col = 0; col < cols; col += kStep) {
    U32s words[kPhiloxWords];
    philox_words(seed, row, col / kPhiloxWords, dropout.offset, words);
    const int64_t count = cols - col < kStep ? cols - col : kStep;
    const uint32_t* in_order = reinterpret_cast<const uint32_t*>(words);
    for (int64_t i = 0; i < count; ++i) factors[col + i] = in_order[i] >= dropout.threshold ? scale : A(0);
  }
  return factors;
}

WARPWRIGHT_ISA_END
