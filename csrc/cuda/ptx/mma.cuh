// mma.sync: a warp multiplies a 16 x 16 by a 16 x 8 matrix on the tensor cores and adds to float32 sums (sm_80).
//
// PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions: Matrix Fragments for mma.m16n8k16 with floating point
// type". With g = lane / 4 and t = lane % 4:
//   a[0..3] hold A at rows g, g + 8, g, g + 8 and columns 2t, 2t, 2t + 8, 2t + 8, two columns to a register;
//   b[0..1] hold B at rows 2t and 2t + 8, two rows to a register, and column g;
//   c[0..3] hold C at (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).

#pragma once

#include <bit>
#include <type_traits>

#include "cuda/runtime.h"

namespace warpwright::cuda::ptx {

#if defined(WARPWRIGHT_BACKEND_EMULATED)
template <class T>
__attribute__((noinline, no_sanitize("thread"))) void emulated_mma(float (&c)[4], const emulator::WarpWords& all) {
  const auto element = [&](int lane, int word, int half) __attribute__((no_sanitize("thread"))) {
    return static_cast<float>(std::bit_cast<T>(static_cast<uint16_t>(all.lane[lane][word] >> (16 * half))));
  };
  const int g = emulator::lane_id() / 4, t = emulator::lane_id() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row_block = i / 2, col = 2 * t + i % 2;
    float sum = 0.0f;
    for (int k = 0; k < 16; ++k) {
      const int holder = k % 8 / 2, k_block = k / 8;
      sum += element(4 * g + holder, 2 * k_block + row_block, k % 2) * element(4 * col + holder, 4 + k_block, k % 2);
    }
    c[i] += sum;
  }
}
#endif

// c += a * b, with A and B of T: __half or __nv_bfloat16.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>, "16-bit floats");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  emulated_mma<T>(c, emulator::warp_exchange(0xffffffffu, words, 6));
#else
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

}  // namespace warpwright::cuda::ptx
