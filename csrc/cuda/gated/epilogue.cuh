// What the gated products do with an element of both accumulators: biases, the gate, then it is stored.

#pragma once

#include "cuda/dtype.cuh"
#include "cuda/tile/activation.cuh"
#include "kernels/gated.h"

namespace warpwright::cuda {

// Adds the biases of column `col` to what is gated and what it is gated by.
template <class T>
__device__ __forceinline__ void add_biases(const GatedParams& p, int64_t col, float& gate, float& up) {
  if (p.gate_bias != nullptr) gate += to_float(static_cast<const T*>(p.gate_bias)[col]);
  if (p.up_bias != nullptr) up += to_float(static_cast<const T*>(p.up_bias)[col]);
}

template <class T>
__device__ __forceinline__ void store_gated(const GatedParams& p, int64_t row, int64_t col, float gate, float up) {
  add_biases<T>(p, col, gate, up);
  const int64_t at = row * p.n + col;
  const float value = activate(p.activation, gate);
  if (p.gate != nullptr) {
    static_cast<T*>(p.gate)[at] = from_float<T>(needs_preact(p.activation) ? gate : value);
    static_cast<T*>(p.up)[at] = from_float<T>(up);
  }
  static_cast<T*>(p.output)[at] = from_float<T>(value * up);
}

}  // namespace warpwright::cuda
