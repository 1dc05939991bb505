// Lends torch's threads to the CPU kernels, and picks the instruction set they use.

#include "bindings/backend.h"

#if defined(WARPWRIGHT_BACKEND_CPU)

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace warpwright::cpu {

void parallel_range(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context) {
  if (end <= begin) return;
  if (end - begin <= grain) return function(begin, end, context);  // Spares the call through torch.
  torch::stable::parallel_for(begin, end, grain, [&](int64_t b, int64_t e) { function(b, e, context); });
}

namespace {

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const Isa best = avx512 ? Isa::kAvx512 : avx2 ? Isa::kAvx2 : Isa::kBaseline;
  const char* wanted = std::getenv("WARPWRIGHT_CPU_ISA");
  if (wanted == nullptr) return best;
  Isa limit = best;
  if (std::strcmp(wanted, "baseline") == 0) limit = Isa::kBaseline;
  if (std::strcmp(wanted, "avx2") == 0) limit = Isa::kAvx2;
  return limit < best ? limit : best;
#else
  return Isa::kBaseline;
#endif
}

}  // namespace

Isa active_isa() {
  static const Isa isa = detect();
  return isa;
}

}  // namespace warpwright::cpu

// For `warpwright info`, through ctypes.
extern "C" __attribute__((visibility("default"))) const char* warpwright_cpu_isa() {
  switch (warpwright::cpu::active_isa()) {
    case warpwright::cpu::Isa::kAvx512: return "avx512";
    case warpwright::cpu::Isa::kAvx2: return "avx2";
    default: return "baseline";
  }
}

#endif
