// What a mask and the causal bound leave of a row.

#pragma once

#include "cuda/dtype.cuh"
#include "cuda/tile/row.cuh"
#include "kernels/softmax.h"

namespace warpwright::cuda {

template <class T>
class BoundedRow {
 public:
  __device__ __forceinline__ BoundedRow(const SoftmaxBounds& bounds, int64_t row)
      : kind_(bounds.kind),
        start_(bounds.kind == SoftmaxMask::kNone ? 0 : bounds.mask.offset(row)),
        stride_(bounds.mask.col_stride),
        data_(bounds.mask.data),
        visible_(bounds.visible(row)) {}

  // Whether an element counts, apart from what is added to it.
  __device__ __forceinline__ bool keeps(int64_t col) const {
    if (col >= visible_) return false;
    return kind_ != SoftmaxMask::kKeep || static_cast<const uint8_t*>(data_)[start_ + col * stride_] != 0;
  }
  // An element's logit, scaled, as the bounds leave it.
  __device__ __forceinline__ float bounded(float x, int64_t col) const {
    if (!keeps(col)) return -INFINITY;
    return kind_ == SoftmaxMask::kAdd ? x + to_float(static_cast<const T*>(data_)[start_ + col * stride_]) : x;
  }

 private:
  SoftmaxMask kind_;
  int64_t start_, stride_;
  const void* data_;
  int64_t visible_;
};

}  // namespace warpwright::cuda
