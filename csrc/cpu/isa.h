// One kernel file, three instruction sets. Each csrc/cpu/*.cpp is compiled once for each of them, with
// WARPWRIGHT_ISA naming the namespace that its code lives in, and the best one the processor has is taken at run
// time. So the wheel runs on any x86-64 and is fast on a new one.
//
// Everything a kernel file defines or instantiates belongs in that namespace: an inline function outside it would be
// compiled three times under one name, and the linker might keep the AVX-512 copy for a processor without AVX-512.
// tests/test_abi.py looks for such symbols.

#pragma once

#include "kernels/common.h"

#define WARPWRIGHT_ISA_BEGIN namespace warpwright::cpu::WARPWRIGHT_ISA {
#define WARPWRIGHT_ISA_END }  // namespace warpwright::cpu::WARPWRIGHT_ISA

namespace warpwright::cpu {

enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// The best instruction set of this processor, or a lower one if WARPWRIGHT_CPU_ISA=baseline|avx2|avx512 says so.
Isa active_isa();

}  // namespace warpwright::cpu

// Placed after the kernels: defines the public launcher, once, in the baseline object.
#if defined(WARPWRIGHT_ISA_BASELINE) && defined(__x86_64__)
#define WARPWRIGHT_CPU_LAUNCHER(NAME, PARAMS)                           \
  namespace warpwright::cpu {                                           \
  namespace avx2 {                                                      \
  void NAME(const ::warpwright::PARAMS&);                               \
  }                                                                     \
  namespace avx512 {                                                    \
  void NAME(const ::warpwright::PARAMS&);                               \
  }                                                                     \
  void NAME(const ::warpwright::PARAMS& params, ::warpwright::Stream) { \
    switch (active_isa()) {                                             \
      case Isa::kAvx512: return avx512::NAME(params);                   \
      case Isa::kAvx2: return avx2::NAME(params);                       \
      default: return baseline::NAME(params);                           \
    }                                                                   \
  }                                                                     \
  }
#elif defined(WARPWRIGHT_ISA_BASELINE)
#define WARPWRIGHT_CPU_LAUNCHER(NAME, PARAMS)                                                            \
  namespace warpwright::cpu {                                                                            \
  void NAME(const ::warpwright::PARAMS& params, ::warpwright::Stream) { return baseline::NAME(params); } \
  }
#else
#define WARPWRIGHT_CPU_LAUNCHER(NAME, PARAMS)
#endif
