// wgmma: what shared memory holds is the test's, byte by byte, and so are the descriptors' fields; what the registers
// hold afterwards goes out as it is.

#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/ptx/wgmma_sp.cuh"
#include "harness.h"

namespace warpwright::conformance {
namespace {

using namespace warpwright::cuda;

inline constexpr int kMaxSteps = 4;

struct Operand {
  int start[kMaxSteps];  // Of each step along k, in bytes.
  int leading, stride;
  ptx::Swizzle swizzle;
};

struct WgmmaParams {
  const unsigned char* image;  // Of shared memory; behind it d, then A's registers, then metadata.
  int image_bytes;
  uint32_t* output;  // 128 x N / 2 sums.
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
template <class S, int kCount>
__device__ __forceinline__ void begin(unsigned char* shared, const WgmmaParams& p, S (&d)[kCount]) {
  for (int i = 16 * static_cast<int>(threadIdx.x); i < p.image_bytes; i += 16 * ptx::kWarpgroup) {
    *reinterpret_cast<uint4*>(shared + i) = *reinterpret_cast<const uint4*>(p.image + i);
  }
  const auto* from = reinterpret_cast<const S*>(p.image + p.image_bytes) + threadIdx.x * kCount;
  for (int i = 0; i < kCount; ++i) d[i] = from[i];
  ptx::fence_proxy_async();
  __syncthreads();
}

// The registers of A for two steps, which lie behind d.
inline constexpr int kRegisterSteps = 2;
[[maybe_unused]] __device__ __forceinline__ const uint32_t* read_a(const WgmmaParams& p, int sums,
                                                                   uint32_t (&a)[kRegisterSteps][4]) {
  const auto* registers = reinterpret_cast<const uint32_t*>(p.image + p.image_bytes) + ptx::kWarpgroup * sums;
  for (int step = 0; step < kRegisterSteps; ++step) {
    for (int i = 0; i < 4; ++i) {
      a[step][i] = registers[(step * ptx::kWarpgroup + static_cast<int>(threadIdx.x)) * 4 + i];
    }
  }
  return registers + kRegisterSteps * ptx::kWarpgroup * 4;
}

template <class S, int kCount>
__device__ __forceinline__ void end(const WgmmaParams& p, S (&d)[kCount]) {
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::wgmma_registers(d);
  for (int i = 0; i < kCount; ++i) reinterpret_cast<S*>(p.output)[threadIdx.x * kCount + i] = d[i];
}

template <class TA, class TB, int kN, bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(128) wgmma_kernel(WgmmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  ptx::Sum<TA> d[kN / 2];
  begin(shared, p, d);
  ptx::wgmma_fence();
  for (int step = 0; step < p.steps; ++step) {
    ptx::wgmma<TA, TB, kN, kAAlongK, kBAlongK>(d, descriptor(shared, p.a, step), descriptor(shared, p.b, step),
                                               step > 0 || p.accumulate != 0);
  }
  end(p, d);
#endif
}

// Each step is a group of its own, so that waiting for the older one alone is seen too.
template <class TA, class TB, int kN, bool kBAlongK>
__global__ void __launch_bounds__(128) wgmma_registers_kernel(WgmmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  ptx::Sum<TA> d[kN / 2];
  uint32_t a[kRegisterSteps][4];
  read_a(p, kN / 2, a);
  begin(shared, p, d);
  ptx::wgmma_fence();
  ptx::wgmma<TA, TB, kN, kBAlongK>(d, a[0], descriptor(shared, p.b, 0), p.accumulate != 0);
  ptx::wgmma_commit();
  ptx::wgmma<TA, TB, kN, kBAlongK>(d, a[1], descriptor(shared, p.b, 1), true);
  ptx::wgmma_commit();
  ptx::wgmma_wait<1>();
  end(p, d);
#endif
}

template <class T, int kN, int kSelector, bool kFromRegisters, bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(128) wgmma_sp_kernel(WgmmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  float d[kN / 2];
  uint32_t a[kRegisterSteps][4], metadata[kRegisterSteps];
  const uint32_t* from = read_a(p, kN / 2, a) + threadIdx.x;
  for (int step = 0; step < kRegisterSteps; ++step) metadata[step] = from[step * ptx::kWarpgroup];
  begin(shared, p, d);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kRegisterSteps; ++step) {
    const uint64_t b = descriptor(shared, p.b, step);
    if constexpr (kFromRegisters) {
      ptx::wgmma_sp<T, kN, kSelector, kBAlongK>(d, a[step], b, metadata[step], true);
    } else {
      ptx::wgmma_sp<T, kN, kSelector, kAAlongK, kBAlongK>(d, descriptor(shared, p.a, step), b, metadata[step], true);
    }
  }
  end(p, d);
#endif
}

// numbers: N, whether k lies together in A and in B, image_bytes, steps, accumulate, then of A and of B: start[4],
// leading, stride, swizzle; the selector of a sparse A.
struct WgmmaCase {
  int n, selector;
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
  p.output = static_cast<uint32_t*>(c.output);
  p.image_bytes = c.next(), p.steps = c.next(), p.accumulate = c.next();
  p.a = make_operand(c), p.b = make_operand(c);
  result.selector = c.next();
  return result;
}

LaunchConfig config_of(const WgmmaCase& c) {
  LaunchConfig config{dim3(1), dim3(ptx::kWarpgroup)};
  config.shared_bytes = c.params.image_bytes;
  return config;
}

// Operands whose rows lie together: of 16 bits, and where N is whole spans of any swizzle.
template <class TA, class TB, int kN, bool kFromRegisters>
void launch_majors(const WgmmaCase& c, const LaunchConfig& config) {
  constexpr bool kAnyMajor = ptx::kIsFloat16<TA> && kN % 64 == 0;
  const WgmmaParams& p = c.params;
  if constexpr (kFromRegisters) {
    if (c.b_along_k) return launch("wgmma_registers", wgmma_registers_kernel<TA, TB, kN, true>, config, p);
    if constexpr (kAnyMajor) return launch("wgmma_registers", wgmma_registers_kernel<TA, TB, kN, false>, config, p);
  } else {
    if (c.a_along_k && c.b_along_k) return launch("wgmma", wgmma_kernel<TA, TB, kN, true, true>, config, p);
    if constexpr (kAnyMajor) {
      if (c.a_along_k) return launch("wgmma", wgmma_kernel<TA, TB, kN, true, false>, config, p);
      if (c.b_along_k) return launch("wgmma", wgmma_kernel<TA, TB, kN, false, true>, config, p);
      return launch("wgmma", wgmma_kernel<TA, TB, kN, false, false>, config, p);
    }
  }
  throw std::runtime_error("no case of these layouts");
}

template <class TA, class TB, bool kFromRegisters, int... kNs>
void run_wgmma(Case from) {
  const WgmmaCase c = make_case(from);
  const LaunchConfig config = config_of(c);
  const bool found = ((c.n == kNs && (launch_majors<TA, TB, kNs, kFromRegisters>(c, config), true)) || ...);
  if (!found) throw std::runtime_error("no case of this N");
}

template <class T, int kN, int kSelector, bool kFromRegisters>
auto sparse_kernel(const WgmmaCase& c) {
  if constexpr (kFromRegisters) {
    return c.b_along_k ? wgmma_sp_kernel<T, kN, kSelector, true, true, true>
                       : wgmma_sp_kernel<T, kN, kSelector, true, true, false>;
  } else {
    if (c.a_along_k) {
      return c.b_along_k ? wgmma_sp_kernel<T, kN, kSelector, false, true, true>
                         : wgmma_sp_kernel<T, kN, kSelector, false, true, false>;
    }
    return c.b_along_k ? wgmma_sp_kernel<T, kN, kSelector, false, false, true>
                       : wgmma_sp_kernel<T, kN, kSelector, false, false, false>;
  }
}

template <class T, int kN, bool kFromRegisters>
void launch_sparse(const WgmmaCase& c, const LaunchConfig& config) {
  const auto kernel =
      c.selector == 0 ? sparse_kernel<T, kN, 0, kFromRegisters>(c) : sparse_kernel<T, kN, 1, kFromRegisters>(c);
  launch("wgmma_sp", kernel, config, c.params);
}

template <class T, bool kFromRegisters, int... kNs>
void run_sparse_n(Case from) {
  const WgmmaCase c = make_case(from);
  const LaunchConfig config = config_of(c);
  const bool found = ((c.n == kNs && (launch_sparse<T, kNs, kFromRegisters>(c, config), true)) || ...);
  if (!found) throw std::runtime_error("no case of this N");
}
template <class T, bool kFromRegisters>
inline constexpr auto run_sparse = run_sparse_n<T, kFromRegisters, 64, 128, 256>;

template <class TA, class TB, bool kFromRegisters>
inline constexpr auto run_each_n =
    run_wgmma<TA, TB, kFromRegisters, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256>;
template <class TA, class TB, bool kFromRegisters>
inline constexpr auto run_some_n = run_wgmma<TA, TB, kFromRegisters, 24, 64, 256>;

}  // namespace

std::span<const NamedCase> wgmma_cases() {
  static constexpr NamedCase kCases[] = {
      {"wgmma_sp_float16", run_sparse<__half, false>},
      {"wgmma_sp_registers_float16", run_sparse<__half, true>},
      {"wgmma_sp_bfloat16", run_sparse<__nv_bfloat16, false>},
      {"wgmma_sp_registers_bfloat16", run_sparse<__nv_bfloat16, true>},
      {"wgmma_float16_float16", run_each_n<__half, __half, false>},
      {"wgmma_registers_float16_float16", run_each_n<__half, __half, true>},
      {"wgmma_bfloat16_bfloat16", run_some_n<__nv_bfloat16, __nv_bfloat16, false>},
      {"wgmma_registers_bfloat16_bfloat16", run_some_n<__nv_bfloat16, __nv_bfloat16, true>},
      {"wgmma_tf32_tf32", run_some_n<ptx::Tf32, ptx::Tf32, false>},
      {"wgmma_registers_tf32_tf32", run_some_n<ptx::Tf32, ptx::Tf32, true>},
      {"wgmma_e4m3_e4m3", run_some_n<__nv_fp8_e4m3, __nv_fp8_e4m3, false>},
      {"wgmma_registers_e4m3_e4m3", run_some_n<__nv_fp8_e4m3, __nv_fp8_e4m3, true>},
      {"wgmma_e4m3_e5m2", run_some_n<__nv_fp8_e4m3, __nv_fp8_e5m2, false>},
      {"wgmma_registers_e4m3_e5m2", run_some_n<__nv_fp8_e4m3, __nv_fp8_e5m2, true>},
      {"wgmma_e5m2_e4m3", run_some_n<__nv_fp8_e5m2, __nv_fp8_e4m3, false>},
      {"wgmma_registers_e5m2_e4m3", run_some_n<__nv_fp8_e5m2, __nv_fp8_e4m3, true>},
      {"wgmma_e5m2_e5m2", run_some_n<__nv_fp8_e5m2, __nv_fp8_e5m2, false>},
      {"wgmma_registers_e5m2_e5m2", run_some_n<__nv_fp8_e5m2, __nv_fp8_e5m2, true>},
      {"wgmma_int8_int8", run_each_n<int8_t, int8_t, false>},
      {"wgmma_registers_int8_int8", run_each_n<int8_t, int8_t, true>},
      {"wgmma_int8_uint8", run_some_n<int8_t, uint8_t, false>},
      {"wgmma_registers_int8_uint8", run_some_n<int8_t, uint8_t, true>},
      {"wgmma_uint8_int8", run_some_n<uint8_t, int8_t, false>},
      {"wgmma_registers_uint8_int8", run_some_n<uint8_t, int8_t, true>},
      {"wgmma_uint8_uint8", run_some_n<uint8_t, uint8_t, false>},
      {"wgmma_registers_uint8_uint8", run_some_n<uint8_t, uint8_t, true>},
  };
  return kCases;
}

}  // namespace warpwright::conformance
