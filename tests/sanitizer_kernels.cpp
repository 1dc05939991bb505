// CUDA kernels that touch global memory which is not theirs, for tests/test_sanitizers.py, which builds them as
// `csrc/build.py --sanitized` builds those of csrc/cuda.

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tma.cuh"

namespace {

using warpwright::DType;
using warpwright::cuda::launch;
namespace ptx = warpwright::cuda::ptx;

constexpr int kThreads = 32, kRow = 8;

struct Params {
  float* data = nullptr;
  int64_t count = 0;
  ptx::TensorMap rows{};  // A matrix of `count` floats and one more row.
};

struct alignas(16) Pack {
  float lane[4];
};

void read_kernel(Params params) {
  const int64_t i = params.count - kThreads + 1 + threadIdx.x;
  if (params.data[i] < 0) params.data[0] = 0;  // line: read
}

void read_before_kernel(Params params) {
  if (params.data[-1 - static_cast<int>(threadIdx.x)] < 0) params.data[0] = 0;  // line: read_before
}

void write_kernel(Params params) {
  params.data[params.count - kThreads + 1 + threadIdx.x] = 0;  // line: write
}

void pack_kernel(Params params) {
  if (threadIdx.x != 0) return;
  const Pack pack = *reinterpret_cast<const Pack*>(params.data + params.count / 4 * 4);  // line: pack
  params.data[0] = pack.lane[0];
}

void atomic_kernel(Params params) {
  if (threadIdx.x == 0) atomicAdd(params.data + params.count, 1.0f);  // line: atomic
}

void copy_kernel(Params params) {
  __shared__ __align__(16) float values[4];
  if (threadIdx.x != 0) return;
  ptx::cp_async(values, params.data + params.count / 4 * 4, 16);  // line: copy
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
}

void load_box_kernel(Params params) {
  __shared__ __align__(128) float box[4 * kRow];
  __shared__ ptx::Mbarrier barrier;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&barrier, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect(&barrier, sizeof(box));
    ptx::tma_load<2>(box, &params.rows, &barrier, {0, static_cast<int>(params.count) / kRow - 3});  // line: load_box
  }
  __syncthreads();
  ptx::mbarrier_wait(&barrier, 0);
}

template <bool kAdd>
void store_box_kernel(Params params) {
  __shared__ __align__(128) float box[4 * kRow];
  box[threadIdx.x] = 1;
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x != 0) return;
  const int at[2] = {0, static_cast<int>(params.count) / kRow - 3};
  if (kAdd) {
    ptx::tma_reduce_add<2>(&params.rows, box, at);  // line: add_box
  } else {
    ptx::tma_store<2>(&params.rows, box, at);  // line: store_box
  }
  ptx::tma_store_commit();
  ptx::tma_store_wait<0>();
}

void right_kernel(Params params) {
  params.data[params.count - kThreads + threadIdx.x] += 1;  // line: right
}

void overflow_kernel(Params params) {
  const int large = static_cast<int>(params.count) + 0x7ffffff0 - 32;
  const int sum = large + static_cast<int>(threadIdx.x);  // line: overflow
  params.data[threadIdx.x] = static_cast<float>(sum);
}

struct Case {
  const char* name;
  void (*kernel)(Params);
};
const Case kCases[] = {
    {"right", right_kernel},
    {"read", read_kernel},
    {"read_before", read_before_kernel},
    {"write", write_kernel},
    {"pack", pack_kernel},
    {"atomic", atomic_kernel},
    {"copy", copy_kernel},
    {"load_box", load_box_kernel},
    {"store_box", store_box_kernel<false>},
    {"add_box", store_box_kernel<true>},
    {"overflow", overflow_kernel},
};

void run(const std::string& name, float* data, int64_t count) {
  for (const Case& one : kCases) {
    if (name != one.name) continue;
    Params params{data, count};
    const ptx::TensorLayout layout{data, DType::kFloat32, 2, {kRow, count / kRow + 1}, {1, kRow}};
    params.rows = ptx::encode_tiled(layout, {{kRow, 4}}, ptx::Swizzle::kNone);
    return launch(one.name, one.kernel, {dim3(1), dim3(kThreads)}, params);
  }
  throw std::runtime_error("no case of this name: " + name);
}

}  // namespace

// Runs a case on `count` floats; returns what the emulator said against it, or an empty text.
extern "C" __attribute__((visibility("default"))) const char* kernel_case(const char* name, float* data,
                                                                          int64_t count) {
  static std::string message;
  message.clear();
  try {
    run(name, data, count);
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
