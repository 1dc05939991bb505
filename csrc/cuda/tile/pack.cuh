// Packs: kCount neighbouring elements moved by one 16-byte instruction.

#pragma once

#include <bit>

#include "cuda/runtime.h"

namespace warpwright::cuda {

inline constexpr int kPackBytes = 16;
template <class T>
inline constexpr int kPackSize = kPackBytes / static_cast<int>(sizeof(T));

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

// Stores a pack by one instruction where it has 16 bytes. nvcc makes four stores of a plain assignment of registers.
template <class T, int kCount>
__device__ __forceinline__ void store_whole(T* to, const Pack<T, kCount>& pack) {
#if !defined(WARPWRIGHT_BACKEND_EMULATED)
  if constexpr (sizeof(pack) == kPackBytes) return __stwb(reinterpret_cast<uint4*>(to), std::bit_cast<uint4>(pack));
#endif
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

// Whether every row of `rows` can be read in packs of T: no step between elements, and each row starts at a multiple
// of the pack's size.
template <class T>
bool rows_fit_packs(const Rows& rows) {
  if (rows.col_stride != 1 || reinterpret_cast<uintptr_t>(rows.data) % kPackBytes != 0) return false;
  for (int d = 0; d < rows.ndim; ++d) {
    if (rows.size[d] > 1 && rows.stride[d] % kPackSize<T> != 0) return false;
  }
  return true;
}

// The same for one contiguous row; null fits.
inline bool row_fits_packs(const void* row) { return reinterpret_cast<uintptr_t>(row) % kPackBytes == 0; }

}  // namespace warpwright::cuda
