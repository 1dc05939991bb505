// What every family's Params are made of. No torch header, no CUDA header.

#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define WARPWRIGHT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define WARPWRIGHT_HOST_DEVICE inline
#endif

namespace warpwright {

enum class DType : int32_t {
  kFloat64,
  kFloat32,
  kFloat16,
  kBFloat16,
  kFloat8E4M3,
  kFloat8E5M2,
  kInt64,
  kInt32,
  kInt8,
  kUInt8
};

enum class Activation : int32_t { kNone, kRelu, kGelu, kGeluTanh, kSilu, kSigmoid, kTanh, kLeakyRelu, kHardswish };

// The slope of leaky_relu below zero: torch's default.
inline constexpr double kLeakySlope = 0.01;

// Whether an activation's gradient is taken from the pre-activation; the others' is taken from the activation's value.
WARPWRIGHT_HOST_DEVICE bool needs_preact(Activation activation) {
  return activation == Activation::kGelu || activation == Activation::kGeluTanh || activation == Activation::kSilu ||
         activation == Activation::kHardswish;
}

// How float32 operands are multiplied on the tensor cores: not at all (kIeee), rounded to TF32, or as three products of
// their TF32 halves, whose error is float32's own. Other dtypes have one way.
enum class Precision : int32_t { kIeee, kTf32, kTf32x3 };

// A cudaStream_t; null on the CPU.
using Stream = void*;

inline constexpr int kMaxLeadingDims = 4;

// A tensor seen as rows: up to four leading dimensions with any strides, then one row with one stride. Kernels
// read strided, transposed and expanded tensors through it where they lie. Strides count elements.
struct Rows {
  void* data = nullptr;
  int32_t ndim = 0;
  int64_t size[kMaxLeadingDims] = {1, 1, 1, 1};
  int64_t stride[kMaxLeadingDims] = {0, 0, 0, 0};
  int64_t col_stride = 1;

  // Elements from `data` to the start of row `row`.
  WARPWRIGHT_HOST_DEVICE int64_t offset(int64_t row) const {
    if (ndim == 1) return row * stride[0];
    int64_t result = 0;
    // Divisions of 64 bits are hundreds of instructions: once is enough.
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (int d = ndim - 1; d >= 0; --d) {
      result += (row % size[d]) * stride[d];
      row /= size[d];
    }
    return result;
  }
};

}  // namespace warpwright

// Declares a launcher that every C++ backend defines: NAME(const PARAMS&, Stream).
#define WARPWRIGHT_DECLARE_LAUNCHER(NAME, PARAMS)                             \
  namespace warpwright::cpu {                                                 \
  void NAME(const ::warpwright::PARAMS& params, ::warpwright::Stream);        \
  }                                                                           \
  namespace warpwright::cuda {                                                \
  void NAME(const ::warpwright::PARAMS& params, ::warpwright::Stream stream); \
  }
