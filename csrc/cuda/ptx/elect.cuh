// elect.sync: picks one lane of a warp, the same one each time (sm_90).
//
// PTX ISA 9.7.13.14, "elect.sync". Which lane is not specified.

#pragma once

#include "cuda/runtime.h"

namespace warpwright::cuda::ptx {

// Whether the calling lane is the one. All 32 lanes must call.
__device__ __forceinline__ bool elect_one() {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
  return emulator::elected();
#else
  unsigned chosen;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(chosen));
  return chosen != 0;
#endif
}

}  // namespace warpwright::cuda::ptx
