// Dropout as the bindings of several families take it: a probability, a seed on the device, and an offset.

#pragma once

#include "bindings/common.h"
#include "kernels/dropout_mask.h"

namespace warpwright {

// What a kernel needs of it; without a seed where nothing is dropped. The seed's memory is the caller's to keep.
inline Dropout to_dropout(const char* op, double p, const OptionalTensor& seed, int64_t offset, const char* like_name,
                          const Tensor& like) {
  WARPWRIGHT_CHECK(p >= 0 && p <= 1, op, "dropout_p must be between 0 and 1, got ", p);
  if (p == 0) return {};
  WARPWRIGHT_CHECK(seed.has_value(), op, "seed must be given with dropout_p");
  check_same_device(op, "seed", *seed, like_name, like);
  WARPWRIGHT_CHECK(seed->scalar_type() == ScalarType::Long && seed->numel() == 1, op,
                   "seed must be one torch.int64, got ", seed->numel(), " of ", dtype_name(seed->scalar_type()));
  return {seed->const_data_ptr(), offset, dropout_threshold(p), p < 1 ? 1 / (1 - p) : 0.0};
}

}  // namespace warpwright
