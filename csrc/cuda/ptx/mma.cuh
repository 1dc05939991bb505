// mma.sync: a warp multiplies a 16 x K by a K x 8 matrix on the tensor cores and adds to its sums (sm_80).
//
// PTX ISA 9.7.14.5, "Matrix multiply-accumulate operation using mma instruction", the figures of the fragments of
// m16n8k8 (TF32), m16n8k16 (16-bit floats) and m16n8k32 (8 bits). K is 32 bytes, and a register holds e = 1, 2 or 4
// elements that are neighbours along it, the first in its low bits. With g = lane / 4 and t = lane % 4:
//   a[0..3] hold A at rows g, g + 8, g, g + 8, from columns e t, e t, e (t + 4), e (t + 4) on;
//   b[0..1] hold B from rows e t and e (t + 4) on, at column g;
//   c[0..3] hold C at (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).

#pragma once

#include "cuda/ptx/element.cuh"

namespace warpwright::cuda::ptx {

// K of the types' instructions.
template <class T>
inline constexpr int kMmaK = kProductBytes / static_cast<int>(sizeof(T));

// Whether mma takes 8-bit floats where this is compiled: from sm_89 on. Elsewhere a kernel that comes to one is
// stopped.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
inline constexpr bool kMmaTakesFloat8 = true;
#else
inline constexpr bool kMmaTakesFloat8 = false;
#endif

#if defined(WARPWRIGHT_BACKEND_EMULATED)
// The number that is element `which` of a register of another lane.
template <class T>
__attribute__((no_sanitize("thread"))) float emulated_element_of(const emulator::WarpWords& all, int lane, int word,
                                                                 int which) {
  return emulated_value<T>(all.lane[lane][word] >> (8 * static_cast<int>(sizeof(T)) * which));
}

// c[i] += product(row, col), for the four elements that the calling lane has. Products of integers are exact in
// float32.
template <class S, class Product>
__attribute__((no_sanitize("thread"))) void emulated_mma_sums(S (&c)[4], const Product& product) {
  const int g = emulator::lane_id() / 4, t = emulator::lane_id() % 4;
  for (int i = 0; i < 4; ++i) c[i] = emulator::add_products(c[i], product(g + i / 2 * 8, 2 * t + i % 2));
}

template <class A, class B>
__attribute__((noinline, no_sanitize("thread"))) void emulated_mma(Sum<A> (&c)[4], const emulator::WarpWords& all) {
  emulated_mma_sums(c, [&](int row, int col) __attribute__((no_sanitize("thread"))) {
    constexpr int kTogether = 4 / static_cast<int>(sizeof(A));
    float sum = 0.0f;
    for (int k = 0; k < kMmaK<A>; ++k) {
      const int holder = k / kTogether % 4, half = k / kTogether / 4, which = k % kTogether;
      sum += emulated_element_of<A>(all, row % 8 * 4 + holder, 2 * half + row / 8, which) *
             emulated_element_of<B>(all, 4 * col + holder, 4 + half, which);
    }
    return sum;
  });
}

// The kept elements of A are those of a 16 x 16 matrix; `all` has a[4], b[4] and the metadata.
template <class T>
__attribute__((noinline, no_sanitize("thread"))) void emulated_mma_sp(float (&c)[4], const emulator::WarpWords& all,
                                                                      int selector) {
  emulated_mma_sums(c, [&](int row, int col) __attribute__((no_sanitize("thread"))) {
    float sum = 0.0f;
    for (int kept = 0; kept < 16; ++kept) {
      const uint32_t metadata = all.lane[row % 8 * 4 + 2 * selector + kept / 8][8];
      const int k = kept / 2 * 4 + static_cast<int>(metadata >> (row / 8 * 16 + kept % 8 * 2) & 3);
      sum += emulated_element_of<T>(all, row % 8 * 4 + kept % 8 / 2, kept / 8 * 2 + row / 8, kept % 2) *
             emulated_element_of<T>(all, 4 * col + k % 8 / 2, 4 + k / 8, k % 2);
    }
    return sum;
  });
}
#endif

// c += a * b, with A of type A and B of type B, which multiply (element.cuh).
template <class A, class B = A>
__device__ __forceinline__ void mma(Sum<A> (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(kMultiply<A, B>, "types that the tensor cores multiply");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  emulated_mma<A, B>(c, emulator::warp_exchange(0xffffffffu, words, 6));
#else
  if constexpr (kIsFloat8<A> && !kMmaTakesFloat8) {
    __trap();
  } else if constexpr (kIsInt8<A>) {
    asm volatile(
        "mma.sync.aligned.m16n8k%10.row.col.s32.%11.%12.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "n"(kMmaK<A>), "C"(Element<A>::kName),
          "C"(Element<B>::kName));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k%10.row.col.f32.%11.%12.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "n"(kMmaK<A>), "C"(Element<A>::kName),
          "C"(Element<B>::kName));
  }
#endif
}

// The same for 16-bit floats.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(kIsFloat16<T>, "16-bit floats");
  mma<T>(c, a, b);
}

// c += a * b for a 16 x 32 matrix A with two of each four neighbours of a row kept, the others zero: 9.7.14.6, "Matrix
// multiply-accumulate operation using mma.sp instruction with sparse matrix A". The kept ones lie as a 16 x 16 matrix
// does; b[0..3] hold B from rows 2t, 2t + 8, 2t + 16, 2t + 24 on. Two bits for each kept element say which of the four
// it is, ascending from the low bits on. Of the lanes with t = 2 kSelector, the low half of `metadata` belongs to the
// first 8 kept elements of row g, the high half to those of row g + 8; t = 2 kSelector + 1 has the other 8.
template <class T, int kSelector>
__device__ __forceinline__ void mma_sp_m16n8k32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                                uint32_t metadata) {
  static_assert(kIsFloat16<T>, "16-bit floats");
  static_assert(kSelector == 0 || kSelector == 1, "one of two pairs of lanes");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::check_metadata(metadata, kSelector);
  const uint32_t words[9] = {a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], metadata};
  emulated_mma_sp<T>(c, emulator::warp_exchange(0xffffffffu, words, 9), kSelector);
#else
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.%14.%14.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata),
        "n"(kSelector), "C"(Element<T>::kName));
#endif
}

}  // namespace warpwright::cuda::ptx
