// What the bindings of the norms share: which dimensions are normalised, and the weights that go with them.

#pragma once

#include "bindings/common.h"

namespace warpwright {

struct NormExtent {
  int64_t rows = 1, cols = 1;
  std::vector<int64_t> leading, affine;
};

inline NormExtent norm_extent(const char* op, const Tensor& input, int64_t normalized_ndim) {
  WARPWRIGHT_CHECK(normalized_ndim >= 1 && normalized_ndim <= input.dim(), op,
                   "normalized_shape must have between 1 and input.dim() = ", input.dim(), " dimensions, got ",
                   normalized_ndim);
  const auto sizes = input.sizes();
  NormExtent extent{1, 1, {sizes.begin(), sizes.end() - normalized_ndim}, {sizes.end() - normalized_ndim, sizes.end()}};
  for (int64_t size : extent.leading) extent.rows *= size;
  for (int64_t size : extent.affine) extent.cols *= size;
  return extent;
}

inline void check_affine(const char* op, const char* name, const OptionalTensor& tensor, const Tensor& input,
                         const NormExtent& extent) {
  if (!tensor.has_value()) return;
  check_same_device(op, name, *tensor, "input", input);
  check_same_dtype(op, name, *tensor, "input", input);
  WARPWRIGHT_CHECK(sizes_of(*tensor) == extent.affine, op, name, " must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(extent.affine)), ", got ", shape_text(tensor->sizes()));
}

}  // namespace warpwright
