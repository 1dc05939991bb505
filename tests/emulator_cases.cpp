// Small kernels that are right, or wrong in one way each, for test_emulator.py: what the emulator says of them is the
// test. Compiled with csrc/emulator as a library of its own; every case is a function that ctypes can call.

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/ptx/cp_async.cuh"

namespace {

using warpwright::cuda::launch;
namespace ptx = warpwright::cuda::ptx;

struct Params {
  float* out = nullptr;
  int64_t count = 0;
};

constexpr int kThreads = 96;

template <bool kWait>
void reverse_kernel(Params params) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kWait) __syncthreads();
  params.out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];  // line: no_wait
}

// Two rounds through one buffer: without the second barrier a fast thread overwrites what a slow one has yet to read.
template <bool kWait>
void two_rounds_kernel(Params params) {
  __shared__ float values[kThreads];
  for (int round = 0; round < 2; ++round) {
    values[threadIdx.x] = static_cast<float>(threadIdx.x);  // line: no_second_wait
    __syncthreads();
    params.out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
    if (kWait) __syncthreads();
  }
}

// A warp talks through shared memory: __syncwarp orders it; a shuffle, and the belief in lockstep, do not.
enum class Wait { kNone, kShuffle, kWarp };
template <Wait kWait>
void lockstep_kernel(Params params) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kWait == Wait::kWarp) __syncwarp();
  if (kWait == Wait::kShuffle) __shfl_xor_sync(0xffffffffu, 1, 1);
  params.out[threadIdx.x] = values[threadIdx.x ^ 1];  // line: no_warp_wait
}

// __syncwarp orders one warp, not two.
void warps_kernel(Params params) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncwarp();
  params.out[threadIdx.x] = values[(threadIdx.x + 32) % kThreads];  // line: warp_wait_for_block
}

void uninitialised_kernel(Params params) {
  __shared__ float values[kThreads];
  if (threadIdx.x != 7) values[threadIdx.x] = 1.0f;
  __syncthreads();
  params.out[threadIdx.x] = values[(threadIdx.x + 1) % kThreads];  // line: uninitialised
}

void two_threads_write(Params params) {
  params.out[threadIdx.x / 2] = 1.0f;  // line: two_threads_write
}

void two_blocks_write(Params params) {
  if (threadIdx.x == 0) params.out[0] = 1.0f;  // line: two_blocks_write
}

void block_reads_what_another_wrote(Params params) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) params.out[0] = 1.0f;
  if (blockIdx.x == 1) params.out[1] = params.out[0];  // line: reads_another_block
}

struct alignas(16) Pack {
  float lane[4];
};
void misaligned_kernel(Params params) {
  if (threadIdx.x != 0) return;
  *reinterpret_cast<Pack*>(params.out + 4) = Pack{1, 2, 3, 4};
  *reinterpret_cast<Pack*>(params.out + 9) = Pack{1, 2, 3, 4};  // line: misaligned
}

// The block's input goes through shared memory by asynchronous copies, in two rounds through one buffer.
enum class Copies { kRight, kNoWait, kNoBarrier, kOverReads, kUnfinished };
template <Copies kHow>
void copies_kernel(Params params) {
  __shared__ __align__(16) float values[kThreads / 4][4];
  const unsigned row = threadIdx.x / 4;
  const bool first = threadIdx.x % 4 == 0;
  for (int round = 0; round < 2; ++round) {
    if (first) ptx::cp_async(values[row], params.out + 4 * row, 16);
    ptx::cp_async_commit();
    if (kHow == Copies::kUnfinished) return;
    if (kHow != Copies::kNoWait) ptx::cp_async_wait<0>();
    if (kHow != Copies::kNoBarrier) __syncthreads();
    const float value = values[kThreads / 4 - 1 - row][threadIdx.x % 4];  // line: no_copy_wait
    if (kHow != Copies::kOverReads) __syncthreads();
    if (value < 0) params.out[threadIdx.x] = value;
  }
}

void misaligned_copy_kernel(Params params) {
  __shared__ __align__(16) float values[8];
  if (threadIdx.x == 0) ptx::cp_async(values, params.out + 1, 16);
}
void copy_to_global_kernel(Params params) {
  if (threadIdx.x == 0) ptx::cp_async(params.out, params.out + 4, 16);
}

void barrier_that_half_the_block_skips(Params) {
  if (threadIdx.x < kThreads / 2) __syncthreads();
}

void shuffle_that_half_the_warp_skips(Params params) {
  if (threadIdx.x % 32 < 16) params.out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

void shuffle_without_its_caller(Params params) { params.out[threadIdx.x] = __shfl_xor_sync(0xffff0000u, 1.0f, 1); }

// One byte of the params.count bytes of dynamic shared memory, or one beside them.
enum class Where { kBefore, kLast, kPast };
template <Where kWhere>
void write_dynamic_shared(Params params) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const int64_t index = kWhere == Where::kBefore ? -1 : kWhere == Where::kLast ? params.count - 1 : params.count;
  if (threadIdx.x == 0) shared[index] = 1;  // line: dynamic
}

// Blocks and threads take tickets, in the emulator alone: a counter on the host that no thread is seen to touch.
int ticket = 0;
__attribute__((no_sanitize("thread"))) void order_kernel(Params params) {
  params.out[blockIdx.x * blockDim.x + threadIdx.x] = static_cast<float>(ticket++);
}

void coordinates_kernel(Params params) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  params.out[block * blockDim.x * blockDim.y * blockDim.z + thread] += static_cast<float>(block * 1000 + thread);
}

// 7 answers a thread, in a block whose last warp is half full.
void warp_kernel(Params params) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto value = static_cast<float>(threadIdx.x);
  const unsigned mask = threadIdx.x < 64 ? 0xffffffffu : 0x0000ffffu;
  float* out = params.out + 7 * threadIdx.x;
  out[0] = __shfl_xor_sync(mask, value, 5);
  out[1] = __shfl_down_sync(mask, value, 3);
  out[2] = __shfl_sync(mask, value, 2);
  out[3] = static_cast<float>(__ballot_sync(mask, lane % 3 == 0) & 0xffffffu);
  out[4] = static_cast<float>(__any_sync(mask, lane == 15));
  out[5] = static_cast<float>(__all_sync(mask, lane < 16));
  __syncwarp(mask);
  out[6] = static_cast<float>(__shfl_xor_sync(mask, static_cast<double>(value) + 0.5, 1));
}

void nothing(Params) {}

void run(const std::string& name, const Params& params) {
  const dim3 one(1), block(kThreads);
  if (name == "reverse") return launch("reverse", reverse_kernel<true>, {one, block}, params);
  if (name == "no_wait") return launch("no_wait", reverse_kernel<false>, {one, block}, params);
  if (name == "two_rounds") return launch("two_rounds", two_rounds_kernel<true>, {one, block}, params);
  if (name == "no_second_wait") return launch("no_second_wait", two_rounds_kernel<false>, {one, block}, params);
  if (name == "warp_wait") return launch("warp_wait", lockstep_kernel<Wait::kWarp>, {one, block}, params);
  if (name == "no_warp_wait") return launch("no_warp_wait", lockstep_kernel<Wait::kNone>, {one, block}, params);
  if (name == "shuffle_for_warp_wait")
    return launch("shuffle_for_warp_wait", lockstep_kernel<Wait::kShuffle>, {one, block}, params);
  if (name == "warp_wait_for_block") return launch("warp_wait_for_block", warps_kernel, {one, block}, params);
  if (name == "uninitialised") return launch("uninitialised", uninitialised_kernel, {one, block}, params);
  if (name == "two_threads_write") return launch("two_threads_write", two_threads_write, {one, block}, params);
  if (name == "two_blocks_write") return launch("two_blocks_write", two_blocks_write, {dim3(2), block}, params);
  if (name == "reads_another_block")
    return launch("reads_another_block", block_reads_what_another_wrote, {dim3(2), block}, params);
  if (name == "misaligned") return launch("misaligned", misaligned_kernel, {one, block}, params);
  if (name == "copies") return launch("copies", copies_kernel<Copies::kRight>, {one, block}, params);
  if (name == "no_copy_wait") return launch("no_copy_wait", copies_kernel<Copies::kNoWait>, {one, block}, params);
  if (name == "copy_wait_for_barrier")
    return launch("copy_wait_for_barrier", copies_kernel<Copies::kNoBarrier>, {one, block}, params);
  if (name == "copy_over_reads")
    return launch("copy_over_reads", copies_kernel<Copies::kOverReads>, {one, block}, params);
  if (name == "unfinished_copy")
    return launch("unfinished_copy", copies_kernel<Copies::kUnfinished>, {one, block}, params);
  if (name == "misaligned_copy") return launch("misaligned_copy", misaligned_copy_kernel, {one, block}, params);
  if (name == "copy_to_global") return launch("copy_to_global", copy_to_global_kernel, {one, block}, params);
  if (name == "skipped_barrier")
    return launch("skipped_barrier", barrier_that_half_the_block_skips, {one, block}, params);
  if (name == "skipped_shuffle")
    return launch("skipped_shuffle", shuffle_that_half_the_warp_skips, {one, block}, params);
  if (name == "mask_without_caller")
    return launch("mask_without_caller", shuffle_without_its_caller, {one, dim3(32)}, params);
  const int bytes = static_cast<int>(params.count);
  if (name == "dynamic_before")
    return launch("dynamic_before", write_dynamic_shared<Where::kBefore>, {one, block, nullptr, bytes}, params);
  if (name == "dynamic_last")
    return launch("dynamic_last", write_dynamic_shared<Where::kLast>, {one, block, nullptr, bytes}, params);
  if (name == "dynamic_past")
    return launch("dynamic_past", write_dynamic_shared<Where::kPast>, {one, block, nullptr, bytes}, params);
  if (name == "order") {
    ticket = 0;
    return launch("order", order_kernel, {dim3(8), dim3(8)}, params);
  }
  if (name == "coordinates") return launch("coordinates", coordinates_kernel, {dim3(2, 3, 4), dim3(3, 2, 5)}, params);
  if (name == "warp") return launch("warp", warp_kernel, {one, dim3(80)}, params);
  if (name == "block_too_large") return launch(name.c_str(), nothing, {one, dim3(33, 32)}, params);
  if (name == "block_empty") return launch(name.c_str(), nothing, {one, dim3(0)}, params);
  if (name == "grid_empty") return launch(name.c_str(), nothing, {dim3(0), one}, params);
  if (name == "grid_too_high") return launch(name.c_str(), nothing, {dim3(1, 65536), one}, params);
  if (name == "grid_too_deep") return launch(name.c_str(), nothing, {dim3(1, 1, 65536), one}, params);
  if (name == "shared_largest") return launch(name.c_str(), nothing, {one, one, nullptr, 227 * 1024}, params);
  if (name == "shared_too_large") return launch(name.c_str(), nothing, {one, one, nullptr, 227 * 1024 + 1}, params);
  throw std::runtime_error("no case of this name: " + name);
}

}  // namespace

// Runs a case; returns what the emulator said against it, or an empty text. `count` floats, or bytes of shared memory.
extern "C" __attribute__((visibility("default"))) const char* emulator_case(const char* name, float* out,
                                                                            int64_t count) {
  static std::string message;
  message.clear();
  try {
    run(name, {out, count});
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
