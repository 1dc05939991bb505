// linear on a 2:4 sparse weight by Hopper's sparse product; linear_sparse24.cu sends what it does not take elsewhere.

#pragma once

#include "kernels/sparse.h"

namespace warpwright::cuda {

// Whether linear_sparse24_mma takes the operands, TMA takes them too, and the GPU is a Hopper that the tiles fill at
// least half.
bool linear_sparse24_wgmma_takes(const LinearSparse24Params& params);
void linear_sparse24_wgmma(const LinearSparse24Params& params, Stream stream);

}  // namespace warpwright::cuda
