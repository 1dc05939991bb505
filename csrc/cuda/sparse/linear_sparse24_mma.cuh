// linear on a 2:4 sparse weight by the tensor cores' sparse product; linear_sparse24.cu sends what it does not take
// elsewhere.

#pragma once

#include "kernels/sparse.h"

namespace warpwright::cuda {

// Whether all operands are 16-bit, k is a multiple of 64, the input has one dimension of stride 1, and every line of
// the input, the values and the metadata starts where cp.async can copy it from.
bool linear_sparse24_mma_takes(const LinearSparse24Params& params);
void linear_sparse24_mma(const LinearSparse24Params& params, Stream stream);

}  // namespace warpwright::cuda
