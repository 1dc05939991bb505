// What a warp does: mma, rounding for it, ldmatrix, stmatrix, cp.async, elect, shuffles and votes.

#include <cstring>

#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/elect.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "harness.h"

namespace warpwright::conformance {
namespace {

using namespace warpwright::cuda;

template <class T>
__device__ __forceinline__ void read_words(T (&to)[4], const uint32_t* words) {
  for (int i = 0; i < 4; ++i) std::memcpy(&to[i], &words[i], sizeof(T));
}

template <class T>
__device__ __forceinline__ void write_words(uint32_t* words, const T (&from)[4]) {
  for (int i = 0; i < 4; ++i) std::memcpy(&words[i], &from[i], sizeof(T));
}

// 32 x (a[4], b[2], c[4]) words in, 32 x c[4] out.
template <class A, class B>
__global__ void mma_kernel(Params p) {
  const uint32_t* words = p.input + 10 * threadIdx.x;
  const uint32_t a[4] = {words[0], words[1], words[2], words[3]}, b[2] = {words[4], words[5]};
  ptx::Sum<A> c[4];
  read_words(c, words + 6);
  ptx::mma<A, B>(c, a, b);
  write_words(p.output + 4 * threadIdx.x, c);
}

// 32 x (a[4], b[4], c[4], metadata) words in, 32 x c[4] out.
template <class T, int kSelector>
__global__ void mma_sp_kernel(Params p) {
  const uint32_t* words = p.input + 13 * threadIdx.x;
  uint32_t a[4], b[4];
  float c[4];
  read_words(a, words);
  read_words(b, words + 4);
  read_words(c, words + 8);
  ptx::mma_sp_m16n8k32<T, kSelector>(c, a, b, words[12]);
  write_words(p.output + 4 * threadIdx.x, c);
}

// 32 float32 numbers in, the same rounded out.
__global__ void round_to_tf32_kernel(Params p) {
  p.output[threadIdx.x] = ptx::round_to_tf32(__uint_as_float(p.input[threadIdx.x]));
}

// 32 rows of 8 16-bit elements in; lane l names row numbers[l]; 32 x 4 words out.
template <bool kTransposed>
__global__ void ldmatrix_kernel(Params p) {
  __shared__ __align__(16) uint32_t rows[32][4];
  for (int i = 0; i < 4; ++i) rows[threadIdx.x][i] = p.input[4 * threadIdx.x + i];
  __syncthreads();
  uint32_t result[4];
  ptx::ldmatrix_x4<kTransposed>(result, rows[p.numbers[threadIdx.x]]);
  for (int i = 0; i < 4; ++i) p.output[4 * threadIdx.x + i] = result[i];
}

// 32 x 4 words in; lane l names row numbers[l]; 32 rows of 8 16-bit elements out.
template <bool kTransposed>
__global__ void stmatrix_kernel(Params p) {
#if WARPWRIGHT_SM90A
  __shared__ __align__(16) uint32_t rows[32][4];
  uint32_t values[4];
  for (int i = 0; i < 4; ++i) values[i] = p.input[4 * threadIdx.x + i];
  ptx::stmatrix_x4<kTransposed>(rows[p.numbers[threadIdx.x]], values);
  __syncthreads();
  for (int i = 0; i < 4; ++i) p.output[4 * threadIdx.x + i] = rows[threadIdx.x][i];
#endif
}

// Thread t copies t % (kSize + 1) bytes of its kSize in each of two groups, and hands them on after waiting for either.
template <int kSize>
__global__ void cp_async_kernel(Params p) {
  __shared__ __align__(16) unsigned char rows[2][32][kSize];
  const auto* input = reinterpret_cast<const unsigned char*>(p.input);
  auto* output = reinterpret_cast<unsigned char*>(p.output);
  const int t = static_cast<int>(threadIdx.x);
  for (int group = 0; group < 2; ++group) {
    ptx::cp_async<kSize>(rows[group][t], input + (32 * group + t) * kSize, t % (kSize + 1));
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<1>();
  __syncthreads();
  for (int i = 0; i < kSize; ++i) output[t * kSize + i] = rows[0][31 - t][i];
  ptx::cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < kSize; ++i) output[(32 + t) * kSize + i] = rows[1][31 - t][i];
}

// Whether each thread was elected, asked twice.
__global__ void elect_kernel(Params p) {
#if WARPWRIGHT_SM90A
  for (int i = 0; i < 2; ++i) p.output[2 * threadIdx.x + i] = ptx::elect_one() ? 1 : 0;
#endif
}

// 64-bit values in. numbers: what xor and down take. 32 x (xor, down, idx) of 64 and of 32 bits out; a lane names its
// source for idx in the upper half of the input.
__global__ void shuffle_kernel(Params p) {
  const unsigned lane = threadIdx.x;
  const uint32_t low = p.input[2 * lane], high = p.input[2 * lane + 1];
  const uint64_t value = low | static_cast<uint64_t>(high) << 32;
  const auto source = static_cast<int>(p.input[64 + lane]);
  const uint64_t wide[3] = {__shfl_xor_sync(0xffffffffu, value, p.numbers[0]),
                            __shfl_down_sync(0xffffffffu, value, static_cast<unsigned>(p.numbers[1])),
                            __shfl_sync(0xffffffffu, value, source)};
  const uint32_t narrow[3] = {__shfl_xor_sync(0xffffffffu, low, p.numbers[0]),
                              __shfl_down_sync(0xffffffffu, low, static_cast<unsigned>(p.numbers[1])),
                              __shfl_sync(0xffffffffu, low, source)};
  for (int i = 0; i < 3; ++i) {
    p.output[9 * lane + 2 * i] = static_cast<uint32_t>(wide[i]);
    p.output[9 * lane + 2 * i + 1] = static_cast<uint32_t>(wide[i] >> 32);
    p.output[9 * lane + 6 + i] = narrow[i];
  }
}

// A mask and a predicate for each lane in; 32 x (ballot, any, all) out, from the lanes of the mask.
__global__ void vote_kernel(Params p) {
  const unsigned mask = p.input[0], lane = threadIdx.x;
  if ((mask >> lane & 1) == 0) return;
  const auto predicate = static_cast<int>(p.input[1 + lane]);
  p.output[3 * lane] = __ballot_sync(mask, predicate);
  p.output[3 * lane + 1] = __any_sync(mask, predicate) != 0 ? 1 : 0;
  p.output[3 * lane + 2] = __all_sync(mask, predicate) != 0 ? 1 : 0;
}

template <void (*kKernel)(Params), int kNumbers = 0, int kThreads = 32>
void warp_case(Case c) {
  launch("warp_case", kKernel, {dim3(1), dim3(kThreads)}, make_params(c, kNumbers));
}

}  // namespace

std::span<const NamedCase> warp_cases() {
  static constexpr NamedCase kCases[] = {
      {"mma_float16_float16", warp_case<mma_kernel<__half, __half>>},
      {"mma_bfloat16_bfloat16", warp_case<mma_kernel<__nv_bfloat16, __nv_bfloat16>>},
      {"mma_tf32_tf32", warp_case<mma_kernel<ptx::Tf32, ptx::Tf32>>},
      {"mma_e4m3_e4m3", warp_case<mma_kernel<__nv_fp8_e4m3, __nv_fp8_e4m3>>},
      {"mma_e4m3_e5m2", warp_case<mma_kernel<__nv_fp8_e4m3, __nv_fp8_e5m2>>},
      {"mma_e5m2_e4m3", warp_case<mma_kernel<__nv_fp8_e5m2, __nv_fp8_e4m3>>},
      {"mma_e5m2_e5m2", warp_case<mma_kernel<__nv_fp8_e5m2, __nv_fp8_e5m2>>},
      {"mma_int8_int8", warp_case<mma_kernel<int8_t, int8_t>>},
      {"mma_int8_uint8", warp_case<mma_kernel<int8_t, uint8_t>>},
      {"mma_uint8_int8", warp_case<mma_kernel<uint8_t, int8_t>>},
      {"mma_uint8_uint8", warp_case<mma_kernel<uint8_t, uint8_t>>},
      {"mma_sp_float16_0", warp_case<mma_sp_kernel<__half, 0>>},
      {"mma_sp_float16_1", warp_case<mma_sp_kernel<__half, 1>>},
      {"mma_sp_bfloat16_0", warp_case<mma_sp_kernel<__nv_bfloat16, 0>>},
      {"mma_sp_bfloat16_1", warp_case<mma_sp_kernel<__nv_bfloat16, 1>>},
      {"round_to_tf32", warp_case<round_to_tf32_kernel>},
      {"ldmatrix", warp_case<ldmatrix_kernel<false>, 32>},
      {"ldmatrix_trans", warp_case<ldmatrix_kernel<true>, 32>},
      {"stmatrix", warp_case<stmatrix_kernel<false>, 32>},
      {"stmatrix_trans", warp_case<stmatrix_kernel<true>, 32>},
      {"cp_async_4", warp_case<cp_async_kernel<4>>},
      {"cp_async_8", warp_case<cp_async_kernel<8>>},
      {"cp_async_16", warp_case<cp_async_kernel<16>>},
      {"elect", warp_case<elect_kernel, 0, 128>},
      {"shuffle", warp_case<shuffle_kernel, 2>},
      {"vote", warp_case<vote_kernel>},
  };
  return kCases;
}

}  // namespace warpwright::conformance
