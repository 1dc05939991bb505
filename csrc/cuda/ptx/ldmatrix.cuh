// ldmatrix: a warp loads four 8 x 8 matrices of 16-bit elements from shared memory into mma's register layout (sm_75).
//
// PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions: ldmatrix". Lane 8 j + r gives the address of row r of
// matrix j, 16 bytes that lie together. Lane l receives in register j elements (l / 4, 2 (l % 4)) and the next one of
// matrix j; with .trans, of its transpose. Elements of 8 and 32 bits load like those of 16 that they are made of,
// 4 bytes of a row to a lane, which is what mma wants of them; .trans would take them apart.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda::ptx {

template <bool kTransposed>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&result)[4], const void* row) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::require_shared(row, 16);
  uint32_t words[2];
  std::memcpy(words, &row, sizeof(row));
  const emulator::WarpWords& rows = emulator::warp_exchange(0xffffffffu, words, 2);
  const int lane = emulator::lane_id();
  for (int j = 0; j < 4; ++j) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int along = 2 * (lane % 4) + i, across = lane / 4;
      const uint16_t* from;
      std::memcpy(&from, rows.lane[8 * j + (kTransposed ? along : across)], sizeof(from));
      pair[i] = from[kTransposed ? across : along];
    }
    result[j] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
#else
  const auto from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"(from)
                 : "memory");
  }
#endif
}

}  // namespace warpwright::cuda::ptx
