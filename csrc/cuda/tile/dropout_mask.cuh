// Which of the elements that a thread holds of a row (tile/row.cuh) dropout keeps.

#pragma once

#include "cuda/tile/row.cuh"
#include "kernels/dropout_mask.h"

namespace warpwright::cuda {

// A factor for each element of a thread's packs: 1 without dropout, else scale or 0.
template <int kCount, int kPacks>
class DropoutFactors {
 public:
  static_assert(kCount * kPacks <= 32, "a bit of one word for each element");
  static_assert(kCount == 1 || kCount % kPhiloxWords == 0, "a pack is one element, or whole blocks of random words");

  __device__ __forceinline__ DropoutFactors(const Dropout& dropout, int64_t row, const RowPlace<kCount>& place) {
    if (dropout.seed == nullptr) return;
    scale_ = static_cast<float>(dropout.scale);
    kept_ = 0;
    const int64_t seed = *static_cast<const int64_t*>(dropout.seed);
    constexpr int kQuads = kCount == 1 ? 1 : kCount / kPhiloxWords;  // Of a pack.
    // Not unrolled: the ten rounds are long, and kernels hold them for the few calls that drop anything.
#pragma unroll 1
    for (int i = 0; i < kPacks * kQuads; ++i) {
      const int64_t col = place.col(i / kQuads) + i % kQuads * kPhiloxWords;
      const PhiloxBlock block = philox(seed, row, col / kPhiloxWords, dropout.offset);
      uint32_t kept = 0;
#pragma unroll
      for (int w = 0; w < kPhiloxWords; ++w) kept |= static_cast<uint32_t>(block.words[w] >= dropout.threshold) << w;
      if constexpr (kCount == 1) {
        kept_ |= ((kept >> (col % kPhiloxWords)) & 1u) << i;
      } else {
        kept_ |= kept << (i * kPhiloxWords);
      }
    }
  }

  __device__ __forceinline__ float operator()(int pack, int i) const {
    return (kept_ >> (pack * kCount + i)) & 1u ? scale_ : 0.0f;
  }

 private:
  uint32_t kept_ = 0xffffffffu;
  float scale_ = 1.0f;
};

}  // namespace warpwright::cuda
