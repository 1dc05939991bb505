// What the convolutions of 8-bit tensors do with their sums: scales, bias, residual and activation, then they are
// stored in the output's dtype, in 8 bits as quantize rounds.

#pragma once

#include "cuda/conv/epilogue.cuh"
#include "cuda/scaled/epilogue.cuh"
#include "cuda/tile/quantize.cuh"
#include "kernels/scaled_conv.h"

namespace warpwright::cuda {

// Element `at` of a residual.
__device__ __forceinline__ float load_residual(DType dtype, const void* data, int64_t at) {
  switch (dtype) {
    case DType::kInt8: return decode_code<Int8>(static_cast<const uint8_t*>(data)[at]);
    case DType::kFloat8E4M3: return decode_code<E4M3>(static_cast<const uint8_t*>(data)[at]);
    case DType::kFloat8E5M2: return decode_code<E5M2>(static_cast<const uint8_t*>(data)[at]);
    default: return load_as(dtype, data, at);
  }
}

__device__ __forceinline__ uint8_t encode_code(DType dtype, float x) {
  switch (dtype) {
    case DType::kFloat8E4M3: return encode_float8<E4M3>(x);
    case DType::kFloat8E5M2: return encode_float8<E5M2>(x);
    default: return encode_int8(x);
  }
}

template <class T, int kCount>
__device__ __forceinline__ void store_rounded(void* data, int64_t to, int64_t step, const float (&values)[kCount],
                                              int count) {
  Pack<T, kCount> pack;
#pragma unroll
  for (int e = 0; e < kCount; ++e) pack.values[e] = from_float<T>(values[e]);
  store_values(static_cast<T*>(data) + to, step, pack, count);
}

// Finishes `count` sums, at most kCount, of neighbouring channels from `channel` on, at `place` of y.
template <int kCount>
__device__ __forceinline__ void store_scaled(const ScaledConvParams& p, const ConvPlace& place, int64_t channel,
                                             const float* sums, int count) {
  const ConvTensor &y = p.conv.y, &r = p.conv.residual;
  const int64_t to = place.line * y.stride[0] + channel * y.stride[1] + offset_in(y, place);
  const int64_t from = place.line * r.stride[0] + channel * r.stride[1] + offset_in(r, place);
  const float input_scale = *p.input_scale;
  const float residual_scale = p.residual_scale == nullptr ? 1.0f : *p.residual_scale;
  float values[kCount];
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    values[e] = 0.0f;
    if (e >= count) continue;
    float value = sums[e] * input_scale * p.weight_scale[(channel + e) * p.weight_scale_stride];
    if (p.conv.bias != nullptr) value += load_as(p.bias_dtype, p.conv.bias, channel + e);
    if (r.data != nullptr) value += load_residual(p.residual_dtype, r.data, from + e * r.stride[1]) * residual_scale;
    values[e] = activate(p.conv.activation, value);
  }
  switch (p.output_dtype) {
    case DType::kFloat32: return store_rounded<float>(y.data, to, y.stride[1], values, count);
    case DType::kFloat16: return store_rounded<__half>(y.data, to, y.stride[1], values, count);
    case DType::kBFloat16: return store_rounded<__nv_bfloat16>(y.data, to, y.stride[1], values, count);
    default: break;
  }
  const float output_scale = *p.output_scale;
  Pack<uint8_t, kCount> codes;
#pragma unroll
  for (int e = 0; e < kCount; ++e) codes.values[e] = encode_code(p.output_dtype, values[e] / output_scale);
  store_values(static_cast<uint8_t*>(y.data) + to, y.stride[1], codes, count);
}

}  // namespace warpwright::cuda
