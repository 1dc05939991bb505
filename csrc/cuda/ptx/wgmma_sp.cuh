// wgmma with a sparse A: a 64 x 32 matrix of 16-bit floats of which two of each four neighbours of a row are kept, the
// others zero (sm_90a).
//
// PTX ISA 9.7.15.6, "Asynchronous wgmma.mma_async.sp". The kept elements lie as a 64 x 16 matrix does, in registers or
// in shared memory, and B has 32 steps of k, 64 bytes, which a swizzle of 32 bytes cannot hold together. Each warp has
// the metadata of its 16 rows, laid out as mma.sp's are (mma.cuh).

#pragma once

#include "cuda/ptx/wgmma.cuh"

namespace warpwright::cuda::ptx {

inline constexpr int kWgmmaSpK = 32;

#if defined(WARPWRIGHT_BACKEND_EMULATED)
template <class T, int kN, int kSelector>
emulator::WarpgroupProduct emulated_sparse_product(bool a_along_k, bool b_along_k, uint64_t b) {
  if (b_along_k && b >> 62 == 3) emulator::stop("wgmma.sp: 64 bytes of B's k do not fit into a swizzle of 32");
  emulator::WarpgroupProduct result = emulated_product<T, T, kN>(a_along_k, b_along_k);
  result.k = kWgmmaSpK, result.sparse = true, result.selector = kSelector;
  return result;
}
#endif

// Starts d = a * b, or d += a * b, with operands in shared memory as wgmma takes them. `metadata` belongs to the
// product until it has been waited for.
template <class T, int kN, int kSelector, bool kAAlongK, bool kBAlongK>
__device__ __forceinline__ void wgmma_sp(float (&d)[kN / 2], uint64_t a, uint64_t b, const uint32_t& metadata,
                                         bool accumulate) {
  static_assert(kIsFloat16<T> && kWgmmaTakesN<kN>, "16-bit floats and an N that wgmma has");
  static_assert(kSelector == 0 || kSelector == 1, "one of two pairs of lanes");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::start_product(emulated_sparse_product<T, kN, kSelector>(kAAlongK, kBAlongK, b), d, a, nullptr, b,
                          accumulate, &metadata);
#else
  using TA = T;
  using TB = T;
  using Modes = WgmmaModes<T, kAAlongK, kBAlongK>;
  constexpr int kDepth = kWgmmaSpK;
  WARPWRIGHT_WGMMA(".sp", WARPWRIGHT_WGMMA_SP_SHARED, "l"(a), "r"(metadata), "n"(kSelector))
#endif
}

// The same with the kept elements of A in registers.
template <class T, int kN, int kSelector, bool kBAlongK>
__device__ __forceinline__ void wgmma_sp(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                         const uint32_t& metadata, bool accumulate) {
  static_assert(kIsFloat16<T> && kWgmmaTakesN<kN>, "16-bit floats and an N that wgmma has");
  static_assert(kSelector == 0 || kSelector == 1, "one of two pairs of lanes");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::start_product(emulated_sparse_product<T, kN, kSelector>(true, kBAlongK, b), d, 0, a, b, accumulate,
                          &metadata);
#else
  using TA = T;
  using TB = T;
  using Modes = WgmmaModes<T, kBAlongK>;
  constexpr int kDepth = kWgmmaSpK;
  WARPWRIGHT_WGMMA(".sp", WARPWRIGHT_WGMMA_SP_REGISTERS, "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(metadata),
                   "n"(kSelector))
#endif
}

}  // namespace warpwright::cuda::ptx
