// Swizzles: where TMA puts, and wgmma looks for, the 16-byte chunks of shared memory.
//
// PTX ISA 5.5.7, "Swizzling modes", and 9.7.15.5.1.2, "Shared Memory Matrix Layout". Within a span of 32, 64 or 128
// bytes the chunk's number is xor-ed with the number of the 128-byte line, so that a column of chunks lies in different
// banks. It is a function of the address: patterns repeat every 256, 512 or 1024 bytes, from 0.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda::ptx {

// The values are those of CUtensorMapSwizzle.
enum class Swizzle : int { kNone = 0, k32Bytes = 1, k64Bytes = 2, k128Bytes = 3 };

WARPWRIGHT_HOST_DEVICE constexpr int swizzle_span(Swizzle swizzle) {
  return swizzle == Swizzle::kNone ? 16 : 16 << static_cast<int>(swizzle);
}

// Where the byte at `address` lies, as an address or as an offset from one that is a multiple of 1024.
template <class Address>
WARPWRIGHT_HOST_DEVICE constexpr Address swizzled(Address address, Swizzle swizzle) {
  const auto mask = static_cast<Address>((1 << static_cast<int>(swizzle)) - 1);
  return address ^ ((address >> 7 & mask) << 4);
}

}  // namespace warpwright::cuda::ptx
