// One small kernel for each instruction of csrc/cuda/ptx, for test_conformance.py: what it computes there is compared
// with the PTX ISA's tables. Compiled for the CPU with the emulator, and by nvcc where there is a GPU.

#include <cstdint>
#include <string>

#include "cuda/launch.h"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"

namespace {

using namespace warpwright::cuda;

struct Params {
  const void* input;
  void* output;
};

// 32 x (a[4], b[2], c[4]) words in, 32 x c[4] out.
template <class T>
__global__ void mma_kernel(Params p) {
  const uint32_t* words = static_cast<const uint32_t*>(p.input) + 10 * threadIdx.x;
  const uint32_t a[4] = {words[0], words[1], words[2], words[3]}, b[2] = {words[4], words[5]};
  float c[4];
  for (int i = 0; i < 4; ++i) c[i] = __uint_as_float(words[6 + i]);
  ptx::mma_m16n8k16<T>(c, a, b);
  for (int i = 0; i < 4; ++i) static_cast<float*>(p.output)[4 * threadIdx.x + i] = c[i];
}

// 32 rows of 8 16-bit elements in, in the order of the lanes that name them; 32 x 4 words out.
template <bool kTransposed>
__global__ void ldmatrix_kernel(Params p) {
  __shared__ __align__(16) uint32_t rows[32][4];
  for (int i = 0; i < 4; ++i) rows[threadIdx.x][i] = static_cast<const uint32_t*>(p.input)[4 * threadIdx.x + i];
  __syncthreads();
  uint32_t result[4];
  ptx::ldmatrix_x4<kTransposed>(result, rows[threadIdx.x]);
  for (int i = 0; i < 4; ++i) static_cast<uint32_t*>(p.output)[4 * threadIdx.x + i] = result[i];
}

// Thread t copies t % 17 bytes of its 16 in each of two groups, and hands them on after waiting for either.
__global__ void cp_async_kernel(Params p) {
  __shared__ __align__(16) unsigned char rows[2][32][16];
  const auto* input = static_cast<const unsigned char*>(p.input);
  auto* output = static_cast<unsigned char*>(p.output);
  const int t = static_cast<int>(threadIdx.x);
  for (int group = 0; group < 2; ++group) {
    ptx::cp_async(rows[group][t], input + (32 * group + t) * 16, t % 17);
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<1>();
  __syncthreads();
  for (int i = 0; i < 16; ++i) output[t * 16 + i] = rows[0][31 - t][i];
  ptx::cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 16; ++i) output[(32 + t) * 16 + i] = rows[1][31 - t][i];
}

void launch_case(const std::string& name, const Params& p) {
  const LaunchConfig warp{dim3(1), dim3(32)};
  if (name == "mma_float16") return launch("mma", mma_kernel<__half>, warp, p);
  if (name == "mma_bfloat16") return launch("mma", mma_kernel<__nv_bfloat16>, warp, p);
  if (name == "ldmatrix") return launch("ldmatrix", ldmatrix_kernel<false>, warp, p);
  if (name == "ldmatrix_trans") return launch("ldmatrix", ldmatrix_kernel<true>, warp, p);
  if (name == "cp_async") return launch("cp_async", cp_async_kernel, warp, p);
  throw std::runtime_error("no case of this name: " + name);
}

std::string message;

}  // namespace

// Runs a case from host memory to host memory; returns what went wrong, or an empty text.
extern "C" __attribute__((visibility("default"))) const char* conformance(const char* name, const void* input,
                                                                          int64_t input_bytes, void* output,
                                                                          int64_t output_bytes) {
  message.clear();
  try {
#if defined(WARPWRIGHT_BACKEND_EMULATED)
    (void)input_bytes, (void)output_bytes;
    launch_case(name, {input, output});
#else
    void *device_input = nullptr, *device_output = nullptr;
    check(cudaMalloc(&device_input, input_bytes), "cudaMalloc");
    check(cudaMalloc(&device_output, output_bytes), "cudaMalloc");
    check(cudaMemcpy(device_input, input, input_bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    launch_case(name, {device_input, device_output});
    check(cudaMemcpy(output, device_output, output_bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
    check(cudaFree(device_input), "cudaFree");
    check(cudaFree(device_output), "cudaFree");
#endif
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
