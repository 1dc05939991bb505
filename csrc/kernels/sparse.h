// Params and launchers of the sparse family: weights that keep two of every four neighbours along k (2:4).

#pragma once

#include "kernels/matmul.h"

namespace warpwright {

// An (n, k) weight without the elements that are zero: python/warpwright/ops/sparse.py says how its metadata lie.
// Strides count elements.
struct Sparse24 {
  const void* values;  // (n, k / 2)
  int64_t values_row, values_col;
  const uint8_t* metadata;  // (n, ceil(k / 8))
  int64_t metadata_row, metadata_col;

  // Where the two kept elements of the group of four columns from 4 * group on lie in it, as four bits: the first one's
  // place in the low two, the second one's in the high two.
  WARPWRIGHT_HOST_DEVICE int places(int64_t row, int64_t group) const {
    return metadata[row * metadata_row + group / 2 * metadata_col] >> (group % 2 * 4) & 15;
  }
};

// The places of the two largest of four magnitudes; of equal ones the first.
template <class A>
WARPWRIGHT_HOST_DEVICE int largest_two(const A (&magnitude)[4]) {
  int kept = 0;  // A bit for each of the four.
  for (int i = 0; i < 4; ++i) {
    int before = 0;
    for (int j = 0; j < 4; ++j) before += j < i ? magnitude[j] >= magnitude[i] : magnitude[j] > magnitude[i];
    kept |= (before < 2 ? 1 : 0) << i;
  }
  const int first = kept & 1 ? 0 : kept & 2 ? 1 : 2, second = kept & 8 ? 3 : kept & 4 ? 2 : 1;
  return first | second << 2;
}

struct Prune24Params {
  const void* weight;  // (n, k)
  int64_t weight_row, weight_col;
  void* values;       // (n, k / 2) contiguous
  uint8_t* metadata;  // (n, ceil(k / 8)) contiguous
  int64_t n, k;
  DType dtype;
};

struct DenseFromSparse24Params {
  Sparse24 weight;
  void* dense;  // (n, k) contiguous
  int64_t n, k;
  DType dtype;
};

// Of a dense (n, k) gradient what belongs to the kept elements.
struct DenseFromSparse24BackwardParams {
  const void* grad_output;  // (n, k)
  int64_t grad_row, grad_col;
  Sparse24 weight;    // its metadata alone
  void* grad_values;  // (n, k / 2) contiguous
  int64_t n, k;
  DType dtype;
};

// `gemm` with the weight in place of b. On the CPU the sums alone, in output_dtype: float32, or float64 for float64.
struct LinearSparse24Params {
  GemmParams gemm;
  Sparse24 weight;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(prune_24, Prune24Params)
WARPWRIGHT_DECLARE_LAUNCHER(dense_from_sparse24, DenseFromSparse24Params)
WARPWRIGHT_DECLARE_LAUNCHER(dense_from_sparse24_backward, DenseFromSparse24BackwardParams)
WARPWRIGHT_DECLARE_LAUNCHER(linear_sparse24, LinearSparse24Params)
