// wgmma: a warpgroup of four warps multiplies a 64 x K by a K x N matrix on the tensor cores, beside its own execution
// (sm_90a). B is read from shared memory, A from there or from registers, sums are float32 or int32 registers.
//
// PTX ISA 9.7.15, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions". K is 32 bytes, and a register
// holds e = 1, 2 or 4 elements of A. 9.7.15.5.1.1: with w the warp of the warpgroup, g = lane / 4 and t = lane % 4,
//   d[i] holds D at row 16 w + g + 8 (i / 2 % 2), column 8 (i / 4) + 2 t + i % 2;
//   a[0..3] hold A at rows 16 w + (g, g + 8, g, g + 8), from columns e t, e t, e (t + 4), e (t + 4) on.
// 9.7.15.5.1.2.1.3, "Canonical Layouts", says where an element lies in shared memory.
//
// The instructions of a thread run in their order, after the fence; registers and shared memory belong to them until
// the group that they were committed to has been waited for.

#pragma once

#include "cuda/ptx/element.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/swizzle.cuh"
#include "cuda/ptx/wgmma_operands.cuh"

namespace warpwright::cuda::ptx {

inline constexpr int kWgmmaM = 64;
template <class T>
inline constexpr int kWgmmaK = kProductBytes / static_cast<int>(sizeof(T));
inline constexpr int kWarpgroup = 128;

// The N that every type has: those of 8-bit integers.
template <int kN>
inline constexpr bool kWgmmaTakesN = kN == 8 || kN == 24 || (kN >= 16 && kN <= 256 && kN % 16 == 0);

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

// Where element (row, k) lies in the shared memory of the block, as an offset like the descriptor's own.
template <uint32_t kBytes>
uint32_t emulated_element(uint64_t descriptor, bool along_k, int row, int k) {
  constexpr Swizzle kSwizzles[] = {Swizzle::kNone, Swizzle::k128Bytes, Swizzle::k64Bytes, Swizzle::k32Bytes};
  const auto field = [&](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  const Swizzle swizzle = kSwizzles[descriptor >> 62];
  const auto span = static_cast<uint32_t>(swizzle_span(swizzle));
  constexpr uint32_t kTogether = 16 / kBytes;  // T.
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

template <class A, class B, int kN>
emulator::WarpgroupProduct emulated_product(bool a_along_k, bool b_along_k) {
  emulator::WarpgroupProduct result{};
  result.n = kN, result.k = kWgmmaK<A>;
  result.bytes = static_cast<int>(sizeof(A)), result.integers = kIsInt8<A>;
  result.a_along_k = a_along_k, result.b_along_k = b_along_k;
  result.element = &emulated_element<sizeof(A)>;
  result.a_value = &emulated_value<A>, result.b_value = &emulated_value<B>;
  return result;
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
template <class S, int kCount>
__device__ __forceinline__ void wgmma_registers(S (&d)[kCount]) {
#if !defined(WARPWRIGHT_BACKEND_EMULATED)
#pragma unroll
  for (S& value : d) {
    if constexpr (std::is_same_v<S, float>) {
      asm volatile("" : "+f"(value)::"memory");
    } else {
      asm volatile("" : "+r"(value)::"memory");
    }
  }
#else
  static_cast<void>(d);
#endif
}

#if !defined(WARPWRIGHT_BACKEND_EMULATED)
// What an instruction ends in: the factors of A and B, which are 1, and which operands in shared memory are transposed,
// which those of 16 bits alone may be. Integers have none of it.
template <class T, bool... kAlongK>
struct WgmmaModes {
  static constexpr char kText[] = ", 1, 1";
};
template <class T, bool kAAlongK, bool kBAlongK>
  requires kIsFloat16<T>
struct WgmmaModes<T, kAAlongK, kBAlongK> {
  static constexpr char kText[] = {
      ',', ' ', '1', ',', ' ', '1', ',', ' ', kAAlongK ? '0' : '1', ',', ' ', kBAlongK ? '0' : '1', '\0'};
};
template <class T, bool kBAlongK>
  requires kIsFloat16<T>
struct WgmmaModes<T, kBAlongK> {
  static constexpr char kText[] = {',', ' ', '1', ',', ' ', '1', ',', ' ', kBAlongK ? '0' : '1', '\0'};
};
template <bool... kAlongK>
struct WgmmaModes<int8_t, kAlongK...> {
  static constexpr char kText[] = "";
};
template <bool... kAlongK>
struct WgmmaModes<uint8_t, kAlongK...> {
  static constexpr char kText[] = "";
};
#endif

// Starts d = a * b, or d += a * b, with A (64, kWgmmaK) of TA and B (kWgmmaK, kN) of TB, which multiply (element.cuh),
// in shared memory as their descriptors say. The k of an operand lies together, or, where it has 16 bits, its rows
// (columns, of B) may.
template <class TA, class TB, int kN, bool kAAlongK = true, bool kBAlongK = true>
__device__ __forceinline__ void wgmma(Sum<TA> (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kMultiply<TA, TB> && kWgmmaTakesN<kN>, "a pair of types and an N that wgmma has");
  static_assert(kIsFloat16<TA> || (kAAlongK && kBAlongK), "k lies together, but for 16-bit floats");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::start_product(emulated_product<TA, TB, kN>(kAAlongK, kBAlongK), d, a, nullptr, b, accumulate);
#else
  using Modes = WgmmaModes<TA, kAAlongK, kBAlongK>;
  constexpr int kDepth = kWgmmaK<TA>;
  WARPWRIGHT_WGMMA("", WARPWRIGHT_WGMMA_SHARED, "l"(a))
#endif
}

// The same with A in registers, which belong to the product until it has been waited for.
template <class TA, class TB, int kN, bool kBAlongK = true>
__device__ __forceinline__ void wgmma(Sum<TA> (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(kMultiply<TA, TB> && kWgmmaTakesN<kN>, "a pair of types and an N that wgmma has");
  static_assert(kIsFloat16<TA> || kBAlongK, "k lies together, but for 16-bit floats");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::start_product(emulated_product<TA, TB, kN>(true, kBAlongK), d, 0, a, b, accumulate);
#else
  using Modes = WgmmaModes<TA, kBAlongK>;
  constexpr int kDepth = kWgmmaK<TA>;
  WARPWRIGHT_WGMMA("", WARPWRIGHT_WGMMA_REGISTERS, "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]))
#endif
}

// Both for operands of one type.
template <class T, int kN, bool kAAlongK, bool kBAlongK>
__device__ __forceinline__ void wgmma(Sum<T> (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  wgmma<T, T, kN, kAAlongK, kBAlongK>(d, a, b, accumulate);
}
template <class T, int kN, bool kBAlongK>
__device__ __forceinline__ void wgmma(Sum<T> (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  wgmma<T, T, kN, kBAlongK>(d, a, b, accumulate);
}

}  // namespace warpwright::cuda::ptx
