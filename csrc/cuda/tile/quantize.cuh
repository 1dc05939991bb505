// What quantizing kernels share: magnitudes, the scale they give, codes and what they stand for.

#pragma once

#include <type_traits>

#include "cuda/tile/float8.cuh"

namespace warpwright::cuda {

// Magnitudes as bit patterns are ordered like integers, with NaN above infinity. As floats they would not be: fmaxf
// loses a NaN. Shuffles and shared memory carry them unchanged.
struct MaxMagnitude {
  static __device__ __forceinline__ float identity() { return 0.0f; }
  static __device__ __forceinline__ float combine(float a, float b) {
    return __float_as_uint(a) > __float_as_uint(b) ? a : b;
  }
};

// The scale of numbers up to `magnitude` in a format up to `largest`.
__device__ __forceinline__ float scale_of_magnitude(float magnitude, float largest) {
  if (magnitude != magnitude) return __uint_as_float(0x7fc00000u);
  if (magnitude == 0.0f) return 1.0f;
  return fmaxf(magnitude / largest, kMinScale);
}

// To the nearest integer, to the even one between two; NaN becomes 0.
__device__ __forceinline__ uint8_t encode_int8(float x) {
  if (x != x) return 0;
  const float clamped = fmaxf(-Int8::kMax, fminf(Int8::kMax, x));
  constexpr float kRound = 12582912.0f;  // Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits.
  return static_cast<uint8_t>(__float_as_uint(clamped + kRound));
}

// Calls f with the format that `dtype` names, Int8 or one of the 8-bit floats.
template <class Function>
void visit_codes(DType dtype, const Function& f) {
  if (dtype == DType::kInt8) return f(Int8{});
  visit_float8(dtype, f);
}

template <class F>
__device__ __forceinline__ float decode_code(uint8_t byte) {
  if constexpr (std::is_same_v<F, Int8>) {
    return static_cast<float>(static_cast<int8_t>(byte));
  } else {
    return decode_float8<F>(byte);
  }
}

}  // namespace warpwright::cuda
