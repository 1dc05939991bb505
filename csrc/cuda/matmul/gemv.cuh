// Matrix times vector: products with one row (a decoding step) or one column, at the speed of memory.

#pragma once

#include "cuda/matmul/split_k.cuh"

namespace warpwright::cuda {

// Whether the output has one row, or one column; and whether the matrix' lines lie along K.
bool gemv_takes(const GemmParams& params);
bool gemv_along_k(const GemmParams& params);
// `splits` blocks share a sum where the matrix' lines lie across K; 1 otherwise.
void gemv(const GemmParams& params, int splits, float* partials, Stream stream);

}  // namespace warpwright::cuda
