// CUDA on the CPU, for the tests: the kernels of csrc/cuda are compiled by the host compiler against this header
// instead of the toolkit's runtime, and every thread of a block is a fiber.
//
// Deliberately unkind: a seed (WARPWRIGHT_EMULATOR_SEED) shuffles the order of blocks and, between two barriers, the
// order of threads, and decides when what is asynchronous happens; shared memory is full of NaNs when a block starts;
// every access is watched (memory.h); a barrier that some threads never reach, a shuffle whose lanes do not all arrive,
// too much shared memory and a grid beyond the hardware's limits stop the launch with an error that names the kernel,
// the block and the thread.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <vector_types.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/common.h"

#undef __launch_bounds__
#undef __shared__
#undef __grid_constant__
#define __launch_bounds__(...)
#define __grid_constant__
// Shared variables are the library's thread-local ones, which lie side by side, so that the emulator finds them all and
// can fill them with NaNs before each block. (A named section would do, but GCC ignores it in templates: bug 41091.)
#define __shared__ static thread_local
#define WARPWRIGHT_DYNAMIC_SHARED(NAME) unsigned char* NAME = ::warpwright::emulator::dynamic_shared()

namespace warpwright::emulator {

inline constexpr int kWarpSize = 32;

// The device that is emulated: its compute capability is WARPWRIGHT_EMULATOR_ARCH, 90 by default, and it has
// WARPWRIGHT_EMULATOR_MULTIPROCESSORS, 2 by default: so few that blocks which stay on one have several tiles to do.
int capability();
int multiprocessors();

// The running thread's coordinates.
struct ThreadContext {
  uint3 thread{}, block{};
  dim3 block_dim{}, grid_dim{};
};
ThreadContext& current();

unsigned char* dynamic_shared();

// __syncthreads: returns when every thread of the block has arrived.
void sync_block();
// A named barrier: returns when `threads` have arrived, or at once if the caller only arrives.
void named_barrier(int id, int threads, bool wait);

// A sum of the tensor cores and the products of one instruction, which float32 holds exactly where they are integers;
// int32 wraps around.
inline float add_products(float sum, float products) { return sum + products; }
inline int32_t add_products(int32_t sum, float products) {
  return static_cast<int32_t>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(static_cast<int32_t>(products)));
}

// Up to kExchangeWords words from each lane of the calling warp, given to all of them. Every lane in `mask` must call.
// What is returned stays as it is until the warp's next exchange but one. Only __syncwarp orders accesses to memory.
inline constexpr int kExchangeWords = 9;
struct WarpWords {
  uint32_t lane[kWarpSize][kExchangeWords];
};
const WarpWords& warp_exchange(unsigned mask, const uint32_t* words, int count, bool orders_memory = false);

// elect.sync: whether the calling lane is the launch's chosen one.
bool elected();

// Stops the launch unless `address` is one of the block's shared memory and a multiple of `alignment`.
void require_shared(const void* address, int alignment);
// Stops the launch with this error, at the source line that led here.
void stop(const std::string& what);
// The same for kernels' headers: a string made there would be an access of the kernel's.
void stop(const char* what);

// Clusters, see cuda/ptx/cluster.cuh.
unsigned cluster_rank();
unsigned cluster_size();
void cluster_arrive();
void cluster_wait();
void* map_shared(void* address, unsigned rank);

// setmaxnreg, see cuda/ptx/setmaxnreg.cuh.
void set_registers(int count, bool take);

// cp.async, see cuda/ptx/cp_async.cuh.
void start_copy(void* shared, const void* global, int bytes, int source_bytes);
void commit_copies();
void wait_for_copies(int pending);

void fence_proxy_async();

// mbarrier objects, see cuda/ptx/mbarrier.cuh.
void mbarrier_init(void* address, unsigned arrivals);
void mbarrier_invalidate(void* address);
void fence_mbarrier_init();
void mbarrier_arrive(void* address, unsigned arrivals, unsigned bytes);
bool mbarrier_wait(void* address, unsigned parity, bool block);

// TMA, see cuda/ptx/tma.cuh. A box in pieces of 16 bytes: bytes [first, last) of each are in global memory too.
struct Piece {
  int64_t offset;  // In shared memory.
  unsigned char* global;
  int first, last;
};
struct Boxes {
  std::vector<Piece> pieces;
  // Not inline: its accesses are not the kernel's.
  void add(const Piece& piece);
  int alignment = 128;  // Of the box in shared memory.
  bool to_tf32 = false;
};
// sum += value, `bytes` of them.
using AddFunction = std::function<void(unsigned char* sum, const unsigned char* value, int bytes)>;
// `blocks`: the cluster's blocks that get the box; 0: the caller's.
void tensor_load(void* shared, void* mbarrier, const Boxes& boxes, unsigned blocks);
void tensor_store(const void* shared, const Boxes& boxes, const AddFunction& add);
void commit_stores();
void wait_for_stores(int pending, bool reads);

// Stops the launch where the calling lane has metadata of a sparse matrix that do not name two of each four elements,
// in their order.
void check_metadata(uint32_t metadata, int selector);

// wgmma, see cuda/ptx/wgmma.cuh.
struct WarpgroupProduct {
  int n, k;
  int bytes;      // Of an element of A, and of B.
  bool integers;  // Sums are int32, not float32.
  bool sparse;    // Half of A's elements are kept, and `selector` says which lanes have the metadata.
  int selector;
  bool a_along_k, b_along_k;
  uint32_t (*element)(uint64_t descriptor, bool along_k, int row, int k);  // Its offset in shared memory.
  float (*a_value)(uint32_t bits), (*b_value)(uint32_t bits);
  bool operator==(const WarpgroupProduct&) const = default;
};
// An address of the block's dynamic shared memory as the hardware counts, from the start of its window.
uint32_t shared_offset(const void* address);
void fence_products();
// `d` has n / 2 registers; `a_registers` is null when A is in shared memory, `metadata` when it is not sparse.
void start_product(const WarpgroupProduct& kind, void* d, uint64_t a, const uint32_t* a_registers, uint64_t b,
                   bool accumulate, const uint32_t* metadata = nullptr);
void commit_products();
void wait_for_products(int pending);

// Atomics: no race with each other; they order nothing.
void check_atomic(const void* address, size_t size, const void* code);

struct Launch {
  const char* name;
  const void* kernel;
  dim3 grid, block;
  int shared_bytes;
  int cluster;  // Blocks along x that run together.
};
// Runs body() once for every thread of the grid.
void run(const Launch& launch, const std::function<void()>& body);

template <class T>
T shuffle(unsigned mask, T value, int source_lane) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shuffles move at most 8 bytes");
  uint32_t words[2] = {};
  std::memcpy(words, &value, sizeof(T));
  const WarpWords& all = warp_exchange(mask, words, 2);
  T result;
  std::memcpy(&result, all.lane[source_lane & (kWarpSize - 1)], sizeof(T));
  return result;
}

inline int lane_id() {
  const ThreadContext& c = current();
  return static_cast<int>((c.thread.x + c.block_dim.x * (c.thread.y + c.block_dim.y * c.thread.z)) % kWarpSize);
}

}  // namespace warpwright::emulator

#define threadIdx (::warpwright::emulator::current().thread)
#define blockIdx (::warpwright::emulator::current().block)
#define blockDim (::warpwright::emulator::current().block_dim)
#define gridDim (::warpwright::emulator::current().grid_dim)

inline void __syncthreads() { ::warpwright::emulator::sync_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { ::warpwright::emulator::warp_exchange(mask, nullptr, 0, true); }
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return ::warpwright::emulator::shuffle(mask, value, ::warpwright::emulator::lane_id() ^ lane_mask);
}
template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane) {
  return ::warpwright::emulator::shuffle(mask, value, lane);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const int lane = ::warpwright::emulator::lane_id(), source = lane + static_cast<int>(delta);
  return ::warpwright::emulator::shuffle(mask, value, source < ::warpwright::emulator::kWarpSize ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint32_t vote = predicate != 0;
  const auto& all = ::warpwright::emulator::warp_exchange(mask, &vote, 1);
  unsigned result = 0;
  for (int i = 0; i < ::warpwright::emulator::kWarpSize; ++i) {
    if ((mask >> i & 1u) != 0 && all.lane[i][0] != 0) result |= 1u << i;
  }
  return result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
inline int __ffs(int x) { return __builtin_ffs(x); }

template <class To, class From>
inline To warpwright_bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline unsigned __float_as_uint(float x) { return warpwright_bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return warpwright_bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return warpwright_bits_as<float>(x); }
inline float __int_as_float(int x) { return warpwright_bits_as<float>(x); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
template <class T>
inline T __ldg(const T* p) {
  return *p;
}

// update(old) replaces what is at `address`; returns the old value. Fibers do not interrupt each other.
template <class T, class Update>
__attribute__((noinline, no_sanitize("thread"))) T warpwright_atomic(T* address, const Update& update) {
  ::warpwright::emulator::check_atomic(address, sizeof(T), __builtin_return_address(0));
  const T old = *address;
  *address = update(old);
  return old;
}
template <class T>
inline T atomicAdd(T* address, T value) {
  return warpwright_atomic(address, [&](T old) { return static_cast<T>(old + value); });
}
template <class T>
inline T atomicMax(T* address, T value) {
  return warpwright_atomic(address, [&](T old) { return old < value ? value : old; });
}
template <class T>
inline T atomicMin(T* address, T value) {
  return warpwright_atomic(address, [&](T old) { return value < old ? value : old; });
}
template <class T>
inline T atomicExch(T* address, T value) {
  return warpwright_atomic(address, [&](T) { return value; });
}
template <class T>
inline T atomicCAS(T* address, T expected, T value) {
  return warpwright_atomic(address, [&](T old) { return old == expected ? value : old; });
}
