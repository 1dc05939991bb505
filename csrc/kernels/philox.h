// Random bits that every backend makes alike: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
// as easy as 1, 2, 3", 2011), a function of a key and a counter without any state.
//
// A tensor is seen as rows of its last dimension. Element (row, col) takes word col % 4 of the block whose key is the
// seed and whose counter is (col / 4, row, row >> 32, offset), so its bits depend neither on the launch nor on the
// order in which elements are visited, and a backward pass makes them again instead of reading a mask.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// Elements that one block of bits serves.
inline constexpr int kPhiloxWords = 4;

// The rounds' multipliers and what is added to the key after each (of the golden ratio and of sqrt(3)).
inline constexpr int kPhiloxRounds = 10;
inline constexpr uint32_t kPhiloxMultiplyA = 0xD2511F53u, kPhiloxMultiplyB = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxRaiseA = 0x9E3779B9u, kPhiloxRaiseB = 0xBB67AE85u;

struct PhiloxBlock {
  uint32_t words[kPhiloxWords];
};

// The bits of elements [4 * quad, 4 * quad + 4) of a row.
WARPWRIGHT_HOST_DEVICE PhiloxBlock philox(int64_t seed, int64_t row, int64_t quad, int64_t offset) {
  auto key_a = static_cast<uint32_t>(seed), key_b = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  auto c0 = static_cast<uint32_t>(quad), c1 = static_cast<uint32_t>(row);
  auto c2 = static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32), c3 = static_cast<uint32_t>(offset);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t a = static_cast<uint64_t>(kPhiloxMultiplyA) * c0, b = static_cast<uint64_t>(kPhiloxMultiplyB) * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ key_a;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ key_b;
    c3 = static_cast<uint32_t>(a);
    key_a += kPhiloxRaiseA;
    key_b += kPhiloxRaiseB;
  }
  return {{c0, c1, c2, c3}};
}

// Dropout keeps an element whose word is at least this: the probability of losing it is p to 2^-32.
inline uint32_t dropout_threshold(double p) {
  const double scaled = p * 4294967296.0;
  return scaled >= 4294967295.0 ? 0xffffffffu : static_cast<uint32_t>(scaled);
}

}  // namespace warpwright
