// What dropout multiplies the elements of a row by.

#pragma once

#include "cpu/vec.h"
#include "kernels/dropout.h"

WARPWRIGHT_ISA_BEGIN

// `scale` or 0 for each element of row `row`, written to `factors`; null without dropout.
template <class A>
inline const A* dropout_factors(const Dropout& dropout, int64_t row, int64_t cols, A* factors) {
  if (dropout.seed == nullptr) return nullptr;
  const int64_t seed = *static_cast<const int64_t*>(dropout.seed);
  for (int64_t col = 0; col < cols; col += kPhiloxWords) {
    const PhiloxBlock block = philox(seed, row, col / kPhiloxWords, dropout.offset);
    const int64_t count = cols - col < kPhiloxWords ? cols - col : kPhiloxWords;
    for (int64_t i = 0; i < count; ++i)
      factors[col + i] = block.words[i] >= dropout.threshold ? A(dropout.scale) : A(0);
  }
  return factors;
}

WARPWRIGHT_ISA_END
