// float32 to and from the 8-bit formats in integer arithmetic, for chips without the conversion instruction, and for
// one rounding everywhere.

#pragma once

#include <stdexcept>

#include "cuda/runtime.h"
#include "kernels/quantize.h"

namespace warpwright::cuda {

// 2^exponent, for normal numbers.
constexpr uint32_t power_bits(int exponent) { return static_cast<uint32_t>(exponent + 127) << 23; }

// Rounds to the nearest number of format F, to the even one between two; what is too large becomes the largest.
template <class F>
__device__ __forceinline__ uint8_t encode_float8(float x) {
  constexpr int kDropped = 23 - F::kMantissa;
  if (x != x) return static_cast<uint8_t>(kFloat8Nan);
  const uint32_t sign = (__float_as_uint(x) >> 24) & 0x80u;
  const float clamped = fminf(fabsf(x), F::kMax);
  const uint32_t magnitude = __float_as_uint(clamped);
  if (magnitude < power_bits(1 - F::kBias)) {
    // One unit in the last place of this number is the distance between subnormals: the addition rounds to them.
    constexpr uint32_t kShift = power_bits(1 - F::kBias + kDropped);
    return static_cast<uint8_t>(sign | (__float_as_uint(clamped + __uint_as_float(kShift)) - kShift));
  }
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - F::kBias) << F::kMantissa;
  const uint32_t odd = (magnitude >> kDropped) & 1u;
  return static_cast<uint8_t>(sign | (((magnitude + ((1u << (kDropped - 1)) - 1u) + odd) >> kDropped) - kRebias));
}

template <class F>
__device__ __forceinline__ float decode_float8(uint8_t byte) {
  constexpr int kDropped = 23 - F::kMantissa;
  const uint32_t sign = (byte & 0x80u) << 24, magnitude = byte & 0x7fu;
  if (magnitude >= F::kFirstNonFinite) {
    return __uint_as_float(sign | (magnitude >= F::kFirstNan ? 0x7fc00000u : 0x7f800000u));
  }
  if (magnitude < (1u << F::kMantissa)) {
    const float step = __uint_as_float(power_bits(1 - F::kBias - F::kMantissa));
    return __uint_as_float(sign | __float_as_uint(static_cast<float>(magnitude) * step));
  }
  return __uint_as_float(sign | ((magnitude << kDropped) + (static_cast<uint32_t>(127 - F::kBias) << 23)));
}

// Calls f with the format that `dtype` names.
template <class Function>
void visit_float8(DType dtype, const Function& f) {
  switch (dtype) {
    case DType::kFloat8E4M3: return f(E4M3{});
    case DType::kFloat8E5M2: return f(E5M2{});
    default: throw std::logic_error("warpwright: not an 8-bit float");  // The bindings check before.
  }
}

}  // namespace warpwright::cuda
