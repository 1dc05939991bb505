// wgmma: a warpgroup of four warps multiplies a 64 x 16 by a 16 x N matrix on the tensor cores, beside its own
// execution (sm_90a). B is read from shared memory, A from there or from registers, sums are float32 registers.
//
// PTX ISA 9.7.15, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions". 9.7.15.5.1.1.1: with w the
// warp of the warpgroup, g = lane / 4 and t = lane % 4,
//   d[i] holds D at row 16 w + g + 8 (i / 2 % 2), column 8 (i / 4) + 2 t + i % 2;
//   a[0..3] hold A at rows 16 w + (g, g + 8, g, g + 8) and columns 2t, 2t, 2t + 8, 2t + 8, two columns to a register.
// 9.7.15.5.1.2.1.3, "Canonical Layouts", says where an element lies in shared memory.
//
// The instructions of a thread run in their order, after the fence; registers and shared memory belong to them until
// the group that they were committed to has been waited for.

#pragma once

#include <bit>
#include <type_traits>

#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/swizzle.cuh"

namespace warpwright::cuda::ptx {

inline constexpr int kWgmmaM = 64, kWgmmaK = 16;
inline constexpr int kWarpgroup = 128;

// PTX ISA 9.7.15.5.1.2.2, "Matrix Descriptor Format": the address of a matrix in shared memory and two strides in
// bytes, all multiples of 16. With T elements in 16 bytes and S bytes in the swizzle's span:
//   k together, no swizzle:   leading: T steps of k; stride: 8 rows. The eight rows of 16 bytes between lie together.
//   k together, swizzled:     leading: unused; stride: 8 rows, which lie S bytes apart.
//   rows together, none:      leading: 8 steps of k; stride: T rows. The eight steps of 16 bytes between lie together.
//   rows together, swizzled:  leading: S bytes of rows; stride: 8 steps of k, which lie S bytes apart.
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* shared, int leading, int stride, Swizzle swizzle) {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  const uint64_t address = emulator::shared_offset(shared);
#else
  const uint64_t address = shared_address(shared);
#endif
  constexpr int kModes[] = {0, 3, 2, 1};  // Of Swizzle's values.
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(leading >> 4 & 0x3fff) << 16 |
         static_cast<uint64_t>(stride >> 4 & 0x3fff) << 32 |
         static_cast<uint64_t>(kModes[static_cast<int>(swizzle)]) << 62;
}

#if defined(WARPWRIGHT_BACKEND_EMULATED)

// Where element (row, k) of 16 bits lies in the shared memory of the block, as an offset like the descriptor's own.
inline uint32_t emulated_element(uint64_t descriptor, bool along_k, int row, int k) {
  constexpr Swizzle kSwizzles[] = {Swizzle::kNone, Swizzle::k128Bytes, Swizzle::k64Bytes, Swizzle::k32Bytes};
  const auto field = [&](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  const Swizzle swizzle = kSwizzles[descriptor >> 62];
  const auto span = static_cast<uint32_t>(swizzle_span(swizzle));
  constexpr uint32_t kBytes = 2, kTogether = 16 / kBytes;  // T.
  const auto r = static_cast<uint32_t>(row), c = static_cast<uint32_t>(k);
  uint32_t offset;
  if (along_k && swizzle == Swizzle::kNone) {
    offset = r % 8 * 16 + r / 8 * stride + c / kTogether * leading + c % kTogether * kBytes;
  } else if (along_k) {
    offset = r % 8 * span + r / 8 * stride + c * kBytes;
  } else if (swizzle == Swizzle::kNone) {
    offset = r % kTogether * kBytes + r / kTogether * stride + c % 8 * 16 + c / 8 * leading;
  } else {
    const uint32_t rows = span / kBytes;
    offset = r % rows * kBytes + r / rows * leading + c % 8 * span + c / 8 * stride;
  }
  return swizzled(start + offset, swizzle);
}

template <class T>
float emulated_value(uint16_t bits) {
  return static_cast<float>(std::bit_cast<T>(bits));
}

template <class T, int kN>
emulator::WarpgroupProduct emulated_product(bool a_along_k, bool b_along_k) {
  return {kN, kWgmmaK, a_along_k, b_along_k, &emulated_element, &emulated_value<T>};
}

#endif

// Before the first wgmma, and after the registers that one takes were touched.
__device__ __forceinline__ void wgmma_fence() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::fence_products();
#else
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}

// Closes the wgmmas of the warp since the last call into a group.
__device__ __forceinline__ void wgmma_commit() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::commit_products();
#else
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#endif
}

// Waits until at most the kPending latest groups of the warp are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::wait_for_products(kPending);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
#endif
}

// Between a wait and the first use of the sums that it hands back: the compiler does not know that they changed, and
// might read them before.
template <int kCount>
__device__ __forceinline__ void wgmma_registers(float (&d)[kCount]) {
#if !defined(WARPWRIGHT_BACKEND_EMULATED)
#pragma unroll
  for (float& value : d) asm volatile("" : "+f"(value)::"memory");
#else
  static_cast<void>(d);
#endif
}

#if !defined(WARPWRIGHT_BACKEND_EMULATED)
#define WARPWRIGHT_REGISTERS_0                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WARPWRIGHT_REGISTERS_1                                                       \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WARPWRIGHT_REGISTERS_2                                                       \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WARPWRIGHT_REGISTERS_3                                                                   \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WARPWRIGHT_D8(I)                                                                                      \
  "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3]), "+f"(d[I + 4]), "+f"(d[I + 5]), "+f"(d[I + 6]), \
      "+f"(d[I + 7])
#define WARPWRIGHT_D32(I) WARPWRIGHT_D8(I), WARPWRIGHT_D8(I + 8), WARPWRIGHT_D8(I + 16), WARPWRIGHT_D8(I + 24)
// A from shared memory; the numbers of the operands that follow the registers are written out.
#define WARPWRIGHT_WGMMA_SS(N, TYPE, REGISTERS, A, B, P, TA, TB, ...)                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P                                                         \
               ", 0;\n"                                                                                      \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" REGISTERS "}, " A ", " B \
               ", p, 1, 1, " TA ", " TB ";\n}\n"                                                             \
               : __VA_ARGS__                                                                                 \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(!kAAlongK)),        \
                 "n"(static_cast<int>(!kBAlongK)))
// A from registers.
#define WARPWRIGHT_WGMMA_RS(N, TYPE, REGISTERS, A0, A1, A2, A3, B, P, TB, ...)                                  \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P                                                            \
               ", 0;\n"                                                                                         \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" REGISTERS "}, {" A0 ", " A1 \
               ", " A2 ", " A3 "}, " B ", p, 1, 1, " TB ";\n}\n"                                                \
               : __VA_ARGS__                                                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),         \
                 "n"(static_cast<int>(!kBAlongK)))
#define WARPWRIGHT_WGMMA_SS_OF(TYPE)                                                                               \
  if constexpr (kN == 64) {                                                                                        \
    WARPWRIGHT_WGMMA_SS(64, TYPE, WARPWRIGHT_REGISTERS_0, "%32", "%33", "%34", "%35", "%36", WARPWRIGHT_D32(0));   \
  }                                                                                                                \
  if constexpr (kN == 128) {                                                                                       \
    WARPWRIGHT_WGMMA_SS(128, TYPE, WARPWRIGHT_REGISTERS_0 ", " WARPWRIGHT_REGISTERS_1, "%64", "%65", "%66", "%67", \
                        "%68", WARPWRIGHT_D32(0), WARPWRIGHT_D32(32));                                             \
  }                                                                                                                \
  if constexpr (kN == 192) {                                                                                       \
    WARPWRIGHT_WGMMA_SS(192, TYPE, WARPWRIGHT_REGISTERS_0 ", " WARPWRIGHT_REGISTERS_1 ", " WARPWRIGHT_REGISTERS_2, \
                        "%96", "%97", "%98", "%99", "%100", WARPWRIGHT_D32(0), WARPWRIGHT_D32(32),                 \
                        WARPWRIGHT_D32(64));                                                                       \
  }                                                                                                                \
  if constexpr (kN == 256) {                                                                                       \
    WARPWRIGHT_WGMMA_SS(256, TYPE,                                                                                 \
                        WARPWRIGHT_REGISTERS_0 ", " WARPWRIGHT_REGISTERS_1 ", " WARPWRIGHT_REGISTERS_2             \
                                               ", " WARPWRIGHT_REGISTERS_3,                                        \
                        "%128", "%129", "%130", "%131", "%132", WARPWRIGHT_D32(0), WARPWRIGHT_D32(32),             \
                        WARPWRIGHT_D32(64), WARPWRIGHT_D32(96));                                                   \
  }
#define WARPWRIGHT_WGMMA_RS_OF(TYPE)                                                                                   \
  if constexpr (kN == 64) {                                                                                            \
    WARPWRIGHT_WGMMA_RS(64, TYPE, WARPWRIGHT_REGISTERS_0, "%32", "%33", "%34", "%35", "%36", "%37", "%38",             \
                        WARPWRIGHT_D32(0));                                                                            \
  }                                                                                                                    \
  if constexpr (kN == 128) {                                                                                           \
    WARPWRIGHT_WGMMA_RS(128, TYPE, WARPWRIGHT_REGISTERS_0 ", " WARPWRIGHT_REGISTERS_1, "%64", "%65", "%66", "%67",     \
                        "%68", "%69", "%70", WARPWRIGHT_D32(0), WARPWRIGHT_D32(32));                                   \
  }                                                                                                                    \
  if constexpr (kN == 192) {                                                                                           \
    WARPWRIGHT_WGMMA_RS(192, TYPE, WARPWRIGHT_REGISTERS_0 ", " WARPWRIGHT_REGISTERS_1 ", " WARPWRIGHT_REGISTERS_2,     \
                        "%96", "%97", "%98", "%99", "%100", "%101", "%102", WARPWRIGHT_D32(0), WARPWRIGHT_D32(32),     \
                        WARPWRIGHT_D32(64));                                                                           \
  }                                                                                                                    \
  if constexpr (kN == 256) {                                                                                           \
    WARPWRIGHT_WGMMA_RS(256, TYPE,                                                                                     \
                        WARPWRIGHT_REGISTERS_0 ", " WARPWRIGHT_REGISTERS_1 ", " WARPWRIGHT_REGISTERS_2                 \
                                               ", " WARPWRIGHT_REGISTERS_3,                                            \
                        "%128", "%129", "%130", "%131", "%132", "%133", "%134", WARPWRIGHT_D32(0), WARPWRIGHT_D32(32), \
                        WARPWRIGHT_D32(64), WARPWRIGHT_D32(96));                                                       \
  }
#endif

template <class T, int kN>
inline constexpr bool kWgmmaTakes = (std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>) &&
                                    (kN == 64 || kN == 128 || kN == 192 || kN == 256);

// Starts d = a * b, or d += a * b, with A (64, 16) and B (16, kN) of T: __half or __nv_bfloat16, in shared memory as
// their descriptors say. The k of an operand lies together, or its rows (columns, of B) do.
template <class T, int kN, bool kAAlongK, bool kBAlongK>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kWgmmaTakes<T, kN>, "16-bit floats, 64, 128, 192 or 256 columns");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::start_product(emulated_product<T, kN>(kAAlongK, kBAlongK), d, a, nullptr, b, accumulate);
#else
  if constexpr (std::is_same_v<T, __half>) {
    WARPWRIGHT_WGMMA_SS_OF("f16")
  } else {
    WARPWRIGHT_WGMMA_SS_OF("bf16")
  }
#endif
}

// The same with A in registers, which belong to the product until it has been waited for.
template <class T, int kN, bool kBAlongK>
__device__ __forceinline__ void wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(kWgmmaTakes<T, kN>, "16-bit floats, 64, 128, 192 or 256 columns");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::start_product(emulated_product<T, kN>(true, kBAlongK), d, 0, a, b, accumulate);
#else
  if constexpr (std::is_same_v<T, __half>) {
    WARPWRIGHT_WGMMA_RS_OF("f16")
  } else {
    WARPWRIGHT_WGMMA_RS_OF("bf16")
  }
#endif
}

#if !defined(WARPWRIGHT_BACKEND_EMULATED)
#undef WARPWRIGHT_WGMMA_RS_OF
#undef WARPWRIGHT_WGMMA_SS_OF
#undef WARPWRIGHT_WGMMA_RS
#undef WARPWRIGHT_WGMMA_SS
#undef WARPWRIGHT_D32
#undef WARPWRIGHT_D8
#undef WARPWRIGHT_REGISTERS_3
#undef WARPWRIGHT_REGISTERS_2
#undef WARPWRIGHT_REGISTERS_1
#undef WARPWRIGHT_REGISTERS_0
#endif

}  // namespace warpwright::cuda::ptx
