// wgmma: what shared memory holds is the test's, byte by byte, and so are the descriptors' fields; what the registers
// hold afterwards goes out as it is.

#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "harness.h"

namespace warpwright::conformance {
namespace {

using namespace warpwright::cuda;

inline constexpr int kMaxSteps = 4;

struct Operand {
  int start[kMaxSteps];  // Of each step of 16 along k, in bytes.
  int leading, stride;
  ptx::Swizzle swizzle;
};

struct WgmmaParams {
  const unsigned char* image;  // Of shared memory; behind it d, then A's registers.
  int image_bytes;
  float* output;  // 128 x N / 2.
  int steps;
  int accumulate;
  Operand a, b;
};

// Where the kernels are empty nobody calls it.
[[maybe_unused]] __device__ __forceinline__ uint64_t descriptor(const unsigned char* shared, const Operand& operand,
                                                                int step) {
  return ptx::wgmma_descriptor(shared + operand.start[step], operand.leading, operand.stride, operand.swizzle);
}

// Brings the image into shared memory, for wgmma to see, and d into registers.
template <int kN>
__device__ __forceinline__ void begin(unsigned char* shared, const WgmmaParams& p, float (&d)[kN / 2]) {
  for (int i = 16 * static_cast<int>(threadIdx.x); i < p.image_bytes; i += 16 * ptx::kWarpgroup) {
    *reinterpret_cast<uint4*>(shared + i) = *reinterpret_cast<const uint4*>(p.image + i);
  }
  const auto* from = reinterpret_cast<const float*>(p.image + p.image_bytes) + threadIdx.x * (kN / 2);
  for (int i = 0; i < kN / 2; ++i) d[i] = from[i];
  ptx::fence_proxy_async();
  __syncthreads();
}

template <int kN>
__device__ __forceinline__ void end(const WgmmaParams& p, const float (&d)[kN / 2]) {
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  for (int i = 0; i < kN / 2; ++i) p.output[threadIdx.x * (kN / 2) + i] = d[i];
}

template <class T, int kN, bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(128) wgmma_kernel(WgmmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  float d[kN / 2];
  begin<kN>(shared, p, d);
  ptx::wgmma_fence();
  for (int step = 0; step < p.steps; ++step) {
    ptx::wgmma<T, kN, kAAlongK, kBAlongK>(d, descriptor(shared, p.a, step), descriptor(shared, p.b, step),
                                          step > 0 || p.accumulate != 0);
  }
  end<kN>(p, d);
#endif
}

// Each step is a group of its own, so that waiting for the older one alone is seen too.
template <class T, int kN, bool kBAlongK>
__global__ void __launch_bounds__(128) wgmma_registers_kernel(WgmmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  float d[kN / 2];
  constexpr int kSteps = 2;
  uint32_t a[kSteps][4];
  const auto* registers = reinterpret_cast<const uint32_t*>(p.image + p.image_bytes) + ptx::kWarpgroup * (kN / 2);
  for (int step = 0; step < kSteps; ++step) {
    for (int i = 0; i < 4; ++i) {
      a[step][i] = registers[(step * ptx::kWarpgroup + static_cast<int>(threadIdx.x)) * 4 + i];
    }
  }
  begin<kN>(shared, p, d);
  ptx::wgmma_fence();
  ptx::wgmma<T, kN, kBAlongK>(d, a[0], descriptor(shared, p.b, 0), p.accumulate != 0);
  ptx::wgmma_commit();
  ptx::wgmma<T, kN, kBAlongK>(d, a[1], descriptor(shared, p.b, 1), true);
  ptx::wgmma_commit();
  ptx::wgmma_wait<1>();
  end<kN>(p, d);
#endif
}

// numbers: N, whether k lies together in A and in B, image_bytes, steps, accumulate, then of A and of B: start[4],
// leading, stride, swizzle.
struct WgmmaCase {
  int n;
  bool a_along_k, b_along_k;
  WgmmaParams params;
};

Operand make_operand(Case& c) {
  Operand result{};
  for (int& start : result.start) start = c.next();
  result.leading = c.next(), result.stride = c.next();
  result.swizzle = static_cast<ptx::Swizzle>(c.next());
  return result;
}

WgmmaCase make_case(Case& c) {
  WgmmaCase result{};
  result.n = c.next(), result.a_along_k = c.next() != 0, result.b_along_k = c.next() != 0;
  WgmmaParams& p = result.params;
  p.image = static_cast<const unsigned char*>(c.input);
  p.output = static_cast<float*>(c.output);
  p.image_bytes = c.next(), p.steps = c.next(), p.accumulate = c.next();
  p.a = make_operand(c), p.b = make_operand(c);
  return result;
}

template <class T, int kN, bool kFromRegisters>
void launch_majors(const WgmmaCase& c, const LaunchConfig& config) {
  const WgmmaParams& p = c.params;
  if constexpr (kFromRegisters) {
    if (c.b_along_k) return launch("wgmma_registers", wgmma_registers_kernel<T, kN, true>, config, p);
    return launch("wgmma_registers", wgmma_registers_kernel<T, kN, false>, config, p);
  } else {
    if (c.a_along_k && c.b_along_k) return launch("wgmma", wgmma_kernel<T, kN, true, true>, config, p);
    if (c.a_along_k) return launch("wgmma", wgmma_kernel<T, kN, true, false>, config, p);
    if (c.b_along_k) return launch("wgmma", wgmma_kernel<T, kN, false, true>, config, p);
    return launch("wgmma", wgmma_kernel<T, kN, false, false>, config, p);
  }
}

template <class T, bool kFromRegisters>
void run_wgmma(Case from) {
  const WgmmaCase c = make_case(from);
  LaunchConfig config{dim3(1), dim3(ptx::kWarpgroup)};
  config.shared_bytes = c.params.image_bytes;
  if (c.n == 64) launch_majors<T, 64, kFromRegisters>(c, config);
  if (c.n == 128) launch_majors<T, 128, kFromRegisters>(c, config);
  if (c.n == 192) launch_majors<T, 192, kFromRegisters>(c, config);
  if (c.n == 256) launch_majors<T, 256, kFromRegisters>(c, config);
}

}  // namespace

std::span<const NamedCase> wgmma_cases() {
  static constexpr NamedCase kCases[] = {
      {"wgmma_float16", run_wgmma<__half, false>},
      {"wgmma_bfloat16", run_wgmma<__nv_bfloat16, false>},
      {"wgmma_registers_float16", run_wgmma<__half, true>},
      {"wgmma_registers_bfloat16", run_wgmma<__nv_bfloat16, true>},
  };
  return kCases;
}

}  // namespace warpwright::conformance
