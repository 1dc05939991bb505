// Params and launchers of the multi_tensor family.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// Elements that one block of a GPU, or one task of a CPU thread, takes.
inline constexpr int64_t kListChunk = 16384;
// Tensors of one launch: their table travels as a kernel argument, of which CUDA passes 4 KB.
inline constexpr int kMaxListTensors = 192;

// Tensors of one dtype, each in one piece of memory.
struct ListParams {
  void* data[kMaxListTensors];
  int64_t numel[kMaxListTensors];            // more than 0
  int32_t first_chunk[kMaxListTensors + 1];  // chunks [first_chunk[t], first_chunk[t + 1]) are of tensor t
  int32_t count;
  DType dtype;
  bool largest;            // the norm is the largest magnitude, not the root of the sum of squares
  const void* multiplier;  // one element that tensors are multiplied by (computing type); null leaves them
  void* partials;          // of this launch, a chunk each: a sum of squares or a largest magnitude (computing type)
  float* flags;            // of this launch, a chunk each: 1 where it has an infinity or a NaN

  // Which tensor chunk `chunk` belongs to.
  WARPWRIGHT_HOST_DEVICE int tensor_of(int32_t chunk) const {
    int t = 0;
    while (chunk >= first_chunk[t + 1]) ++t;
    return t;
  }
};
static_assert(sizeof(ListParams) <= 4096, "CUDA passes 4 KB of kernel arguments");

// The second stage: one norm and one flag out of all chunks'.
struct ListResultParams {
  const void* partials;  // (chunks)
  const float* flags;    // (chunks)
  int64_t chunks;
  void* norm;        // one element of the type that is computed in, or null
  float* found_inf;  // one element, set to 1 where a flag is; else it is left, or, with a norm, set to 0
  DType dtype;
  bool largest;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(tensor_list_pass, ListParams)
WARPWRIGHT_DECLARE_LAUNCHER(tensor_list_result, ListResultParams)
