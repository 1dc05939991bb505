// What linear and convolution ask of a backend's matrix product. bindings/matmul.cpp defines it for CUDA and the
// emulator, bindings/onednn/matmul.cpp for the CPU.

#pragma once

#include "bindings/common.h"

namespace warpwright {

struct LinearOutput {
  Tensor output;  // (m, n)
  Tensor preact;  // (m, n), or no elements
};

// activation(a @ b.T + bias + residual) for a (m, k), b (n, k), bias (n), residual (m, n), any strides.
LinearOutput gemm(const Tensor& a, const Tensor& b, const OptionalTensor& bias, const OptionalTensor& residual,
                  Activation activation, bool save_preact);

// Activations whose gradient is taken from the pre-activation (relu's is taken from the output).
inline bool needs_preact(Activation activation) {
  return activation != Activation::kNone && activation != Activation::kRelu;
}

struct EpilogueGrads {
  Tensor grad_preact;  // (rows, cols); grad_output itself without an activation
  Tensor grad_bias;    // (channels), or no elements
};

// Backward of an epilogue over tensors seen as (rows, cols) with channels in the columns, or in the rows.
EpilogueGrads epilogue_grads(const Tensor& grad_output, const OptionalTensor& saved, Activation activation,
                             int64_t channels, bool channels_in_rows, bool need_preact, bool need_bias);

// Throws unless `saved` is there for an activation, absent without one, and like grad_output.
void check_saved(const char* op, const OptionalTensor& saved, Activation activation, const Tensor& grad_output);

}  // namespace warpwright
