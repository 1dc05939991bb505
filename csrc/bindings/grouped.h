// What the bindings of the grouped product ask of a backend. bindings/grouped.cpp defines it for CUDA and the emulator,
// bindings/onednn/grouped.cpp for the CPU. `offsets` is contiguous int32, and on the CPU it has been checked.

#pragma once

#include "bindings/gemm.h"

namespace warpwright {

// activation(a @ b[group].T + bias[group]) of each row of a (rows, k) that is in a group, b (groups, n, k); zeros for
// the other rows. The pre-activation, too, if `keep`.
ProductOutput grouped_product(const Tensor& a, const Tensor& b, const Tensor& offsets, const OptionalTensor& bias,
                              Activation activation, bool keep, bool batch_invariant);

// (groups, m, n): of each group a's rows, transposed, times b's; a (rows, m), b (rows, n).
Tensor grouped_weight_grad(const Tensor& a, const Tensor& b, const Tensor& offsets);

// (groups, n): the sums of each group's rows of grad (rows, n).
Tensor grouped_bias_grad(const Tensor& grad, const Tensor& offsets);

}  // namespace warpwright
