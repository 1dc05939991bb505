// Small kernels with Hopper's asynchronous instructions that are right, or wrong in one way each, for
// test_emulator_hopper.py. Compiled with csrc/emulator as a library of its own.

#include <cstdint>
#include <exception>
#include <map>
#include <string>

#include "cuda/launch.h"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/elect.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/ptx/wgmma_sp.cuh"

namespace {

using warpwright::DType;
using warpwright::cuda::launch;
using warpwright::cuda::LaunchConfig;
namespace ptx = warpwright::cuda::ptx;

constexpr int kCols = 32, kRows = 4, kBytes = kRows * kCols * 4;

struct Params {
  ptx::TensorMap map;  // Of (64, 64) float32 numbers, in boxes of (kRows, kCols).
  float* out = nullptr;
};

// ---- mbarrier and TMA loads ----

enum class Load {
  kRight,
  kNoInit,
  kNoInitFence,
  kNoInitBarrier,
  kNoWait,
  kWrongParity,
  kTooFewBytes,
  kTooManyBytes,
  kNoBytes,
  kTwoArrivals,
  kTwoInits,
  kOverReads,
  kMisaligned,
  kPastTheEnd,
  kToGlobal,
  kNoMap,
  kBarrierTouched,
  kZeroArrivals,
};

// Two boxes, one after the other, through one buffer.
template <Load kHow>
void load_kernel(const __grid_constant__ Params p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  __shared__ ptx::Mbarrier full;
  auto* const values = reinterpret_cast<float*>(shared);
  const auto t = threadIdx.x;
  if (t == 0 && kHow != Load::kNoInit) {
    ptx::mbarrier_init(&full, kHow == Load::kZeroArrivals ? 0 : 1);
    if (kHow == Load::kTwoInits) ptx::mbarrier_init(&full, 1);
    if (kHow != Load::kNoInitFence) ptx::fence_mbarrier_init();
  }
  if (kHow != Load::kNoInitBarrier) __syncthreads();
  for (int round = 0; round < 2; ++round) {
    if (t == 0) {
      unsigned bytes = kBytes;
      if (kHow == Load::kTooFewBytes) bytes -= 16;
      if (kHow == Load::kTooManyBytes) bytes += 16;
      if (kHow == Load::kNoBytes) ptx::mbarrier_arrive(&full);
      if (kHow != Load::kNoBytes) ptx::mbarrier_arrive_expect(&full, bytes);
      if (kHow == Load::kTwoArrivals) ptx::mbarrier_arrive(&full);
      unsigned char* to = shared;
      if (kHow == Load::kMisaligned) to += 16;
      if (kHow == Load::kPastTheEnd) to += kBytes;
      if (kHow == Load::kToGlobal) to = reinterpret_cast<unsigned char*>(p.out);
      const ptx::TensorMap nothing{};
      ptx::tma_load(to, kHow == Load::kNoMap ? &nothing : &p.map, &full, {0, kRows * round});  // line: load
    }
    if (kHow == Load::kBarrierTouched) p.out[t] = static_cast<float>(full.word);  // line: barrier_touched
    const auto parity = static_cast<unsigned>(kHow == Load::kWrongParity ? 1 - round : round);
    if (kHow != Load::kNoWait) ptx::mbarrier_wait(&full, parity);
    p.out[32 * round + t] = values[t];  // line: read
    if (kHow != Load::kOverReads) __syncthreads();
  }
}

// ---- TMA stores ----

enum class Store { kRight, kNoFence, kNoBarrier, kFenceByReader, kNoCommit, kNoWait, kOverReads, kTwoThreads };

// Two boxes, one after the other, through one buffer.
template <Store kHow>
void store_kernel(const __grid_constant__ Params p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  auto* const values = reinterpret_cast<float*>(shared);
  const auto t = threadIdx.x;
  for (int round = 0; round < 2; ++round) {
    for (unsigned i = t; i < kRows * kCols; i += 32) values[i] = static_cast<float>(round);  // line: write
    if (kHow != Store::kNoFence && kHow != Store::kFenceByReader) ptx::fence_proxy_async();
    if (kHow != Store::kNoBarrier) __syncthreads();
    if (kHow == Store::kFenceByReader) ptx::fence_proxy_async();
    if (t == 0 || (t == 1 && kHow == Store::kTwoThreads)) {
      ptx::tma_store(&p.map, shared, {0, kRows * round});  // line: store
      if (kHow != Store::kNoCommit) ptx::tma_store_commit();
      if (kHow != Store::kNoWait && !(kHow == Store::kOverReads && round == 0)) ptx::tma_store_wait_read<0>();
    }
    __syncthreads();
  }
}

// Reads what the thread has stored to global memory; waiting until shared memory was read is not enough.
template <bool kWritten>
void read_stored_kernel(const __grid_constant__ Params p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  for (int i = 0; i < kRows * kCols; ++i) reinterpret_cast<float*>(shared)[i] = 3.0f;
  ptx::fence_proxy_async();
  ptx::tma_store(&p.map, shared, {0, 0});
  ptx::tma_store_commit();
  if (kWritten) ptx::tma_store_wait<0>();
  if (!kWritten) ptx::tma_store_wait_read<0>();
  p.out[1] = p.out[0] + 1;  // line: read_stored
}

// ---- named barriers, elect, registers ----

enum class Named { kRight, kOtherCount, kTooFew, kNoSuch, kPartOfAWarp, kOtherBarrier };

// The second warp reads what the first one wrote; the third has no part in it.
template <Named kHow>
void named_kernel(const __grid_constant__ Params p) {
  __shared__ float values[32];
  const auto warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  constexpr int kId = kHow == Named::kNoSuch ? 16 : 1;
  if (warp == 0) {
    values[lane] = static_cast<float>(lane);
    ptx::named_barrier_arrive(kId, kHow == Named::kPartOfAWarp ? 48 : 64);
  } else if (warp == 1) {
    ptx::named_barrier_sync(kHow == Named::kOtherBarrier ? 2 : kId,
                            kHow == Named::kOtherCount || kHow == Named::kTooFew ? 96 : 64);
    p.out[lane] = values[31 - lane];
  }
}

template <bool kReleased>
void registers_kernel(const __grid_constant__ Params) {
  if (threadIdx.x < 128) {
    if (kReleased) ptx::release_registers<40>();
  } else {
    ptx::take_registers<232>();
  }
}
void released_upwards_kernel(const __grid_constant__ Params) { ptx::release_registers<240>(); }

// ---- clusters ----

enum class Cluster {
  kRight,
  kNoBarrier,
  kNoLastBarrier,
  kBlockBarrier,
  kTwoArrivals,
  kNoArrival,
  kNoSuchBlock,
  kOneBlock
};

// Each block reads what the other one wrote.
template <Cluster kHow>
void cluster_kernel(const __grid_constant__ Params p) {
  __shared__ float values[32];
  const unsigned rank = ptx::cluster_rank(), t = threadIdx.x;
  values[t] = static_cast<float>(32 * rank + t);
  if (kHow == Cluster::kBlockBarrier) __syncthreads();
  if (kHow == Cluster::kTwoArrivals) ptx::cluster_arrive();
  if (kHow == Cluster::kOneBlock && rank == 0) return;
  if (kHow == Cluster::kNoArrival) ptx::cluster_wait();
  if (kHow != Cluster::kNoBarrier && kHow != Cluster::kBlockBarrier) ptx::cluster_sync();
  const unsigned other = kHow == Cluster::kNoSuchBlock ? 2 : 1 - rank;
  p.out[32 * rank + t] = *ptx::map_shared(&values[t], other);  // line: cluster
  if (kHow != Cluster::kNoLastBarrier) ptx::cluster_sync();
}

// Block 1 arrives at the object of block 0, which waits.
template <bool kFence>
void remote_arrive_kernel(const __grid_constant__ Params) {
  __shared__ ptx::Mbarrier ready;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&ready, 1);
    if (kFence) ptx::fence_mbarrier_init();
  }
  ptx::cluster_sync();
  if (ptx::cluster_rank() == 1 && threadIdx.x == 0) ptx::mbarrier_arrive_remote(&ready, 0);
  if (ptx::cluster_rank() == 0) ptx::mbarrier_wait(&ready, 0);
  ptx::cluster_sync();
}

// ---- wgmma ----

enum class Product {
  kRight,
  kNoFence,
  kNoCommit,
  kNoWait,
  kOverOperands,
  kNoProxyFence,
  kNoBarrier,
  kThreeWarps,
  kOneDiffers,
  kOutside,
  kNotWaitedFor,
};

// One product of a (64, 16) by a (16, 64) matrix of ones.
template <Product kHow>
void product_kernel(const __grid_constant__ Params p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const auto t = threadIdx.x;
  auto* const halves = reinterpret_cast<__half*>(shared);
  for (unsigned i = t; i < 2 * 64 * 16; i += blockDim.x) halves[i] = __float2half_rn(1.0f);  // line: operand
  if (kHow != Product::kNoProxyFence) ptx::fence_proxy_async();
  if (kHow != Product::kNoBarrier) __syncthreads();
  if (kHow == Product::kThreeWarps && t < 32) return;
  float sums[32] = {};
  const unsigned char* const b_at = kHow == Product::kOutside ? shared + 3072 : shared + 2048;
  const uint64_t a = ptx::wgmma_descriptor(shared, 128, 256, ptx::Swizzle::kNone);
  const uint64_t b = ptx::wgmma_descriptor(b_at, 128, 256, ptx::Swizzle::kNone);
  if (kHow != Product::kNoFence) ptx::wgmma_fence();
  ptx::wgmma<__half, 64, true, true>(sums, a, b, kHow == Product::kOneDiffers && t == 127);  // line: wgmma
  if (kHow != Product::kNoCommit) ptx::wgmma_commit();
  if (kHow == Product::kNotWaitedFor) return;
  if (kHow == Product::kOverOperands) halves[t] = __float2half_rn(0.0f);  // line: over_operands
  if (kHow != Product::kNoWait) ptx::wgmma_wait<0>();
  p.out[t] = sums[0];  // line: sums
}

// The same of bytes, whose sums are integers.
template <bool kWait>
void integers_kernel(const __grid_constant__ Params p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const auto t = threadIdx.x;
  for (unsigned i = t; i < 2 * 64 * 32; i += blockDim.x) shared[i] = 1;
  ptx::fence_proxy_async();
  __syncthreads();
  int32_t sums[32] = {};
  const uint64_t a = ptx::wgmma_descriptor(shared, 128, 256, ptx::Swizzle::kNone);
  const uint64_t b = ptx::wgmma_descriptor(shared + 2048, 128, 256, ptx::Swizzle::kNone);
  ptx::wgmma_fence();
  ptx::wgmma<int8_t, uint8_t, 64>(sums, a, b, true);
  ptx::wgmma_commit();
  if (kWait) ptx::wgmma_wait<0>();
  p.out[t] = static_cast<float>(sums[0]);  // line: integers
}

enum class Sparse { kRight, kUnordered, kNarrowSwizzle, kMetadataWritten };

// One product of a (64, 32) matrix, half of which are ones, by a (32, 64) matrix of ones.
template <Sparse kHow>
void sparse_kernel(const __grid_constant__ Params p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const auto t = threadIdx.x;
  auto* const halves = reinterpret_cast<__half*>(shared);
  for (unsigned i = t; i < 64 * 16 + 64 * 32; i += blockDim.x) halves[i] = __float2half_rn(1.0f);
  ptx::fence_proxy_async();
  __syncthreads();
  float sums[32] = {};
  uint32_t metadata[1] = {kHow == Sparse::kUnordered ? 0x44444414 : 0x44444444};
  const auto swizzle = kHow == Sparse::kNarrowSwizzle ? ptx::Swizzle::k32Bytes : ptx::Swizzle::kNone;
  const uint64_t a = ptx::wgmma_descriptor(shared, 128, 256, ptx::Swizzle::kNone);
  const uint64_t b = ptx::wgmma_descriptor(shared + 2048, 128, 512, swizzle);
  ptx::wgmma_fence();
  ptx::wgmma_sp<__half, 64, 0, true, true>(sums, a, b, metadata[0], false);  // line: sparse
  ptx::wgmma_commit();
  if (kHow == Sparse::kMetadataWritten) metadata[t / 128] = 0x88888888;  // line: metadata
  ptx::wgmma_wait<0>();
  p.out[t] = sums[0] + static_cast<float>(metadata[t / 128] & 1);
}

// ---- atomics ----

enum class Atomic { kRight, kWrite, kRead };

// All threads of all blocks count.
template <Atomic kHow>
void atomic_kernel(const __grid_constant__ Params p) {
  if (kHow == Atomic::kWrite && threadIdx.x == 3) p.out[0] = 1.0f;  // line: atomic_write
  atomicAdd(p.out, 1.0f);
  if (kHow == Atomic::kRead && threadIdx.x == 3) p.out[1] = p.out[0];  // line: atomic_read
}

// ---------------------------------------------------------------------------------------------------------------------

struct Case {
  void (*kernel)(Params);
  unsigned blocks = 1, threads = 32;
  int shared_bytes = kBytes, cluster = 1;
};

const std::map<std::string, Case>& cases() {
  static const std::map<std::string, Case> all = {
      {"load", {load_kernel<Load::kRight>}},
      {"no_init", {load_kernel<Load::kNoInit>}},
      {"no_init_fence", {load_kernel<Load::kNoInitFence>}},
      {"no_init_barrier", {load_kernel<Load::kNoInitBarrier>}},
      {"no_load_wait", {load_kernel<Load::kNoWait>}},
      {"wrong_parity", {load_kernel<Load::kWrongParity>}},
      {"too_few_bytes", {load_kernel<Load::kTooFewBytes>}},
      {"too_many_bytes", {load_kernel<Load::kTooManyBytes>}},
      {"no_bytes", {load_kernel<Load::kNoBytes>}},
      {"two_arrivals", {load_kernel<Load::kTwoArrivals>}},
      {"two_inits", {load_kernel<Load::kTwoInits>}},
      {"load_over_reads", {load_kernel<Load::kOverReads>}},
      {"misaligned_load", {load_kernel<Load::kMisaligned>}},
      {"load_past_the_end", {load_kernel<Load::kPastTheEnd>}},
      {"load_to_global", {load_kernel<Load::kToGlobal>}},
      {"no_map", {load_kernel<Load::kNoMap>}},
      {"barrier_touched", {load_kernel<Load::kBarrierTouched>}},
      {"zero_arrivals", {load_kernel<Load::kZeroArrivals>}},
      {"store", {store_kernel<Store::kRight>}},
      {"no_store_fence", {store_kernel<Store::kNoFence>}},
      {"no_store_barrier", {store_kernel<Store::kNoBarrier>}},
      {"fence_by_reader", {store_kernel<Store::kFenceByReader>}},
      {"no_store_commit", {store_kernel<Store::kNoCommit>}},
      {"no_store_wait", {store_kernel<Store::kNoWait>}},
      {"write_over_store", {store_kernel<Store::kOverReads>}},
      {"two_threads_store", {store_kernel<Store::kTwoThreads>}},
      {"read_stored", {read_stored_kernel<true>, 1, 1}},
      {"read_before_written", {read_stored_kernel<false>, 1, 1}},
      {"named", {named_kernel<Named::kRight>, 1, 96}},
      {"named_other_count", {named_kernel<Named::kOtherCount>, 1, 96}},
      {"named_none", {named_kernel<Named::kNoSuch>, 1, 96}},
      {"named_part_of_a_warp", {named_kernel<Named::kPartOfAWarp>, 1, 96}},
      {"named_other_barrier", {named_kernel<Named::kOtherBarrier>, 1, 96}},
      {"registers", {registers_kernel<true>, 1, 384}},
      {"registers_never_released", {registers_kernel<false>, 1, 384}},
      {"registers_released_upwards", {released_upwards_kernel, 1, 384}},
      {"cluster", {cluster_kernel<Cluster::kRight>, 2, 32, 0, 2}},
      {"cluster_no_barrier", {cluster_kernel<Cluster::kNoBarrier>, 2, 32, 0, 2}},
      {"cluster_no_last_barrier", {cluster_kernel<Cluster::kNoLastBarrier>, 2, 32, 0, 2}},
      {"cluster_block_barrier", {cluster_kernel<Cluster::kBlockBarrier>, 2, 32, 0, 2}},
      {"cluster_two_arrivals", {cluster_kernel<Cluster::kTwoArrivals>, 2, 32, 0, 2}},
      {"cluster_no_arrival", {cluster_kernel<Cluster::kNoArrival>, 2, 32, 0, 2}},
      {"cluster_no_such_block", {cluster_kernel<Cluster::kNoSuchBlock>, 2, 32, 0, 2}},
      {"cluster_ended_block", {cluster_kernel<Cluster::kOneBlock>, 2, 32, 0, 2}},
      {"cluster_uneven", {cluster_kernel<Cluster::kRight>, 3, 32, 0, 2}},
      {"cluster_too_large", {cluster_kernel<Cluster::kRight>, 16, 32, 0, 16}},
      {"remote_arrive", {remote_arrive_kernel<true>, 2, 32, 0, 2}},
      {"remote_arrive_no_fence", {remote_arrive_kernel<false>, 2, 32, 0, 2}},
      {"product", {product_kernel<Product::kRight>, 1, 128, 4096}},
      {"product_no_fence", {product_kernel<Product::kNoFence>, 1, 128, 4096}},
      {"product_no_commit", {product_kernel<Product::kNoCommit>, 1, 128, 4096}},
      {"product_no_wait", {product_kernel<Product::kNoWait>, 1, 128, 4096}},
      {"product_over_operands", {product_kernel<Product::kOverOperands>, 1, 128, 4096}},
      {"product_no_proxy_fence", {product_kernel<Product::kNoProxyFence>, 1, 128, 4096}},
      {"product_no_barrier", {product_kernel<Product::kNoBarrier>, 1, 128, 4096}},
      {"product_three_warps", {product_kernel<Product::kThreeWarps>, 1, 128, 4096}},
      {"product_one_differs", {product_kernel<Product::kOneDiffers>, 1, 128, 4096}},
      {"product_outside", {product_kernel<Product::kOutside>, 1, 128, 4096}},
      {"product_not_waited_for", {product_kernel<Product::kNotWaitedFor>, 1, 128, 4096}},
      {"integers", {integers_kernel<true>, 1, 128, 4096}},
      {"integers_no_wait", {integers_kernel<false>, 1, 128, 4096}},
      {"sparse", {sparse_kernel<Sparse::kRight>, 1, 128, 6144}},
      {"sparse_unordered", {sparse_kernel<Sparse::kUnordered>, 1, 128, 6144}},
      {"sparse_narrow_swizzle", {sparse_kernel<Sparse::kNarrowSwizzle>, 1, 128, 6144}},
      {"sparse_metadata_written", {sparse_kernel<Sparse::kMetadataWritten>, 1, 128, 6144}},
      {"product_part_of_a_warpgroup", {product_kernel<Product::kRight>, 1, 160, 4096}},
      {"atomic", {atomic_kernel<Atomic::kRight>, 3}},
      {"atomic_and_write", {atomic_kernel<Atomic::kWrite>}},
      {"atomic_and_read", {atomic_kernel<Atomic::kRead>}},
  };
  return all;
}

}  // namespace

// Runs the case; what the emulator said against it, or "". `tensor` is (64, 64) float32.
extern "C" __attribute__((visibility("default"))) const char* hopper_case(const char* name, float* tensor, float* out) {
  static std::string message;
  message.clear();
  try {
    const Case& c = cases().at(name);
    const ptx::TensorLayout layout{tensor, DType::kFloat32, 2, {64, 64}, {1, 64}};
    const Params params{ptx::encode_tiled(layout, {{kCols, kRows}}, ptx::Swizzle::kNone), out};
    launch(name, c.kernel, {dim3(c.blocks), dim3(c.threads), nullptr, c.shared_bytes, c.cluster}, params);
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
