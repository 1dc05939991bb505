// stmatrix: a warp stores four 8 x 8 matrices of 16-bit elements from mma's register layout to shared memory (sm_90).
//
// PTX ISA 9.7.14.5.16, "stmatrix": ldmatrix the other way. Lane 8 j + r gives the address of row r of matrix j, 16
// bytes that lie together. Lane l holds in register j elements (l / 4, 2 (l % 4)) and the next one of matrix j; with
// .trans, of its transpose.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda::ptx {

template <bool kTransposed>
__device__ __forceinline__ void stmatrix_x4(void* row, const uint32_t (&values)[4]) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::require_shared(row, 16);
  uint32_t words[6] = {0, 0, values[0], values[1], values[2], values[3]};
  std::memcpy(words, &row, sizeof(row));
  const emulator::WarpWords& all = emulator::warp_exchange(0xffffffffu, words, 6);
  const int lane = emulator::lane_id(), matrix = lane / 8, r = lane % 8;
  auto* const to = static_cast<uint16_t*>(row);  // This lane writes the row that it named.
  for (int c = 0; c < 8; ++c) {
    const int across = kTransposed ? c : r, along = kTransposed ? r : c;
    to[c] = static_cast<uint16_t>(all.lane[4 * across + along / 2][2 + matrix] >> (16 * (along % 2)));
  }
#else
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "r"(values[0]),
                 "r"(values[1]), "r"(values[2]), "r"(values[3])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "r"(values[0]),
                 "r"(values[1]), "r"(values[2]), "r"(values[3])
                 : "memory");
  }
#endif
}

}  // namespace warpwright::cuda::ptx
