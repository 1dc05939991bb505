// Storage types on the device, their conversion to the type they are computed in, and the dispatch from a DType.

#pragma once

#include <cstring>
#include <stdexcept>

#include "cuda/runtime.h"

namespace warpwright::cuda {

// Every storage type is computed in float32. (float64 stays on the CPU, where gradients are checked.)
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Two neighbours of a 16-bit type as one word, the first in its low half.
template <class T>
__device__ __forceinline__ uint32_t pack_pair(float first, float second);
template <>
__device__ __forceinline__ uint32_t pack_pair<__half>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  uint32_t word;
  std::memcpy(&word, &pair, sizeof(word));
  return word;
}
template <>
__device__ __forceinline__ uint32_t pack_pair<__nv_bfloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  uint32_t word;
  std::memcpy(&word, &pair, sizeof(word));
  return word;
}

// Calls f with a value of the storage type that `dtype` names; float32, float16 and bfloat16 only.
template <class F>
void visit_float(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32: return f(float{});
    case DType::kFloat16: return f(__half{});
    case DType::kBFloat16: return f(__nv_bfloat16{});
    default: throw std::logic_error("warpwright: this dtype has no CUDA kernel");  // The bindings check before.
  }
}

}  // namespace warpwright::cuda
