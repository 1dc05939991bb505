// Split-K: where there are too few tiles for the device's multiprocessors, several blocks share the sum of one.
//
// Each adds up a contiguous part of K and writes its float32 sums to `partials`; a second kernel adds those in their
// order and applies the epilogue. No atomics: the same bits every time.

#pragma once

#include "cuda/matmul/epilogue.cuh"

namespace warpwright::cuda {

// Where split `split`'s sums go: (splits, batch, m, n), float32.
WARPWRIGHT_HOST_DEVICE int64_t partial_at(const GemmParams& p, int64_t split, int64_t index, int64_t row, int64_t col) {
  return ((split * p.matrices() + index) * p.m + row) * p.n + col;
}

// Adds up the splits of every element, then bias, residual, activation and so on.
void reduce_splits(const GemmParams& params, float* partials, int splits, Stream stream);

}  // namespace warpwright::cuda
