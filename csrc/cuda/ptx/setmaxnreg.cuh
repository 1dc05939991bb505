// setmaxnreg: a warpgroup hands registers back to its block, or takes some (sm_90a).
//
// PTX ISA 9.7.19.5, "setmaxnreg". Every warp of the warpgroup must execute it; the count is of a thread, a multiple of
// 8 from 24 to 256. Taking waits until the block has as many; the block has as many as it was launched with.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda::ptx {

template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0, "a multiple of 8 from 24 to 256");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::set_registers(kRegisters, false);
#else
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
#endif
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0, "a multiple of 8 from 24 to 256");
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  emulator::set_registers(kRegisters, true);
#else
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
#endif
}

}  // namespace warpwright::cuda::ptx
