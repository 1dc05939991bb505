// cp.async: copies from global to shared memory that run beside the thread that starts them (sm_80).
//
// PTX ISA, "Data Movement and Conversion Instructions: cp.async", "cp.async.commit_group", "cp.async.wait_group".
// A thread starts copies, closes them into a group, and waits until at most some number of its latest groups are still
// on their way. That makes the bytes visible to this thread alone: the others need a barrier after the wait.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda::ptx {

inline constexpr int kCopyBytes = 16;

// Copies `bytes` (0 to kSize) from `global` to `shared` and fills up to kSize with zeros. Both must be multiples of
// kSize; `global` is not read when `bytes` is 0. Copies of 16 bytes pass the first-level cache by.
template <int kSize = kCopyBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int bytes) {
  static_assert(kSize == 4 || kSize == 8 || kSize == 16, "sizes of the instruction");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::start_copy(shared, global, kSize, bytes);
#else
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (kSize == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;\n" ::"r"(to), "l"(global), "r"(bytes), "n"(kSize)
                 : "memory");
  }
#endif
}

// Closes the copies started since the last call into a group, an empty one if there were none.
__device__ __forceinline__ void cp_async_commit() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::commit_copies();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most the kPending latest groups of this thread are unfinished.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::wait_for_copies(kPending);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

}  // namespace warpwright::cuda::ptx
