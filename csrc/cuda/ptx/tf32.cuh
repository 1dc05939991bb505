// TF32: float32 with 10 bits of mantissa, what the tensor cores take of a float32 (sm_80).
//
// PTX ISA 5.2.3, "Alternate Floating-Point Data Formats": an element is a 32-bit register. 9.7.9.21, "cvt": .rna rounds
// to the nearest value, ties away from zero.

#pragma once

#include <bit>

#include "cuda/runtime.h"

namespace warpwright::cuda::ptx {

// An element of a matrix: the name of the type, to the instructions that take it.
struct Tf32 {
  uint32_t bits;
};

// The bits of `x`, rounded; the 13 that TF32 does not have are zero.
__device__ __forceinline__ uint32_t round_to_tf32(float x) {
  constexpr uint32_t kDropped = 0x1fff;
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  const auto bits = std::bit_cast<uint32_t>(x);
  if (x != x) return 0x7fffe000;  // The canonical NaN.
  const bool finite = (bits & 0x7f800000) != 0x7f800000;
  return (finite ? bits + (kDropped + 1) / 2 : bits) & ~kDropped;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(x));
  return bits & ~kDropped;  // PTX leaves open what they hold.
#endif
}

}  // namespace warpwright::cuda::ptx
