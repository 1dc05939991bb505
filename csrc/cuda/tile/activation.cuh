// The activations of an epilogue, and their derivatives: see csrc/cpu/activation.h.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda {

inline constexpr float kInvSqrt2 = 0.70710678f;
inline constexpr float kInvSqrt2Pi = 0.39894228f;
inline constexpr float kTanhScale = 0.79788456f;
inline constexpr float kTanhCubic = 0.044715f;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// NaN passes through.
__device__ __forceinline__ float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

__device__ __forceinline__ float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kRelu: return x != x ? x : fmaxf(x, 0.0f);
    case Activation::kGelu: return 0.5f * x * (1.0f + erff(x * kInvSqrt2));
    case Activation::kGeluTanh: return 0.5f * x * (1.0f + tanhf(kTanhScale * (x + kTanhCubic * x * x * x)));
    case Activation::kSilu: return x * sigmoid(x);
    case Activation::kSigmoid: return sigmoid(x);
    case Activation::kTanh: return tanhf(x);
    case Activation::kLeakyRelu: return x > 0.0f ? x : x * static_cast<float>(kLeakySlope);
    case Activation::kHardswish: return x * clamp(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
    default: return x;
  }
}

// d activation / d pre-activation, from what csrc/cpu/activation.h says.
__device__ __forceinline__ float activation_grad(Activation activation, float x) {
  switch (activation) {
    case Activation::kRelu: return x > 0.0f ? 1.0f : 0.0f;
    case Activation::kGelu: {
      const float cdf = 0.5f * (1.0f + erff(x * kInvSqrt2));
      return cdf + x * kInvSqrt2Pi * expf(-0.5f * x * x);
    }
    case Activation::kGeluTanh: {
      const float t = tanhf(kTanhScale * (x + kTanhCubic * x * x * x));
      const float inner_grad = kTanhScale * (1.0f + 3.0f * kTanhCubic * x * x);
      return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner_grad;
    }
    case Activation::kSilu: {
      const float s = sigmoid(x);
      return s * (1.0f + x * (1.0f - s));
    }
    case Activation::kSigmoid: return x * (1.0f - x);
    case Activation::kTanh: return 1.0f - x * x;
    case Activation::kLeakyRelu: return x > 0.0f ? 1.0f : static_cast<float>(kLeakySlope);
    case Activation::kHardswish: return x <= -3.0f ? 0.0f : x >= 3.0f ? 1.0f : x * (1.0f / 3.0f) + 0.5f;
    default: return 1.0f;
  }
}

}  // namespace warpwright::cuda
