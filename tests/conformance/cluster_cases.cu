// What blocks of a cluster do: know their place, meet, reach each other's shared memory, arrive at each other's
// objects.

#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "harness.h"

namespace warpwright::conformance {
namespace {

using namespace warpwright::cuda;

inline constexpr int kThreads = 64;

// (rank, size) of every block.
__global__ void cluster_place_kernel(Params p) {
#if WARPWRIGHT_SM90A
  if (threadIdx.x != 0) return;
  p.output[2 * blockIdx.x] = ptx::cluster_rank();
  p.output[2 * blockIdx.x + 1] = ptx::cluster_size();
#endif
}

// numbers[0] rounds: thread t of each block adds up cells of all blocks of its cluster, then leaves the sum in the next
// block's cells.
__global__ void cluster_memory_kernel(Params p) {
#if WARPWRIGHT_SM90A
  __shared__ uint32_t cells[kThreads], inbox[kThreads];
  const unsigned t = threadIdx.x, rank = ptx::cluster_rank(), size = ptx::cluster_size();
  cells[t] = p.input[blockIdx.x * kThreads + t];
  for (int round = 0; round < p.numbers[0]; ++round) {
    ptx::cluster_sync();
    uint32_t sum = 0;
    for (unsigned other = 0; other < size; ++other) {
      sum += (other + 1) * ptx::map_shared(cells, other)[(t + other) % kThreads];
    }
    ptx::map_shared(inbox, (rank + 1) % size)[t] = sum;
    ptx::cluster_arrive();
    ptx::cluster_wait();
    cells[t] = inbox[kThreads - 1 - t];
  }
  p.output[blockIdx.x * kThreads + t] = cells[t];
  // A block's shared memory is there as long as the block is.
  ptx::cluster_sync();
#endif
}

// For numbers[1] phases the blocks take turns to arrive at the object of block numbers[0], which looks after each turn.
__global__ void remote_arrive_kernel(Params p) {
#if WARPWRIGHT_SM90A
  __shared__ ptx::Mbarrier barrier;
  const unsigned t = threadIdx.x, rank = ptx::cluster_rank(), size = ptx::cluster_size();
  const auto target = static_cast<unsigned>(p.numbers[0]);
  if (t == 0) {
    ptx::mbarrier_init(&barrier, size * kThreads);
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_sync();
  uint32_t* to = p.output + blockIdx.x / size * static_cast<unsigned>(p.numbers[1]) * size;
  for (int phase = 0; phase < p.numbers[1]; ++phase) {
    for (unsigned turn = 0; turn < size; ++turn) {
      if (rank == turn) ptx::mbarrier_arrive_remote(&barrier, target);
      ptx::cluster_sync();
      if (rank == target && t == 0) *to++ = ptx::mbarrier_test_wait(&barrier, phase & 1) ? 1 : 0;
      ptx::cluster_sync();
    }
  }
#endif
}

// All blocks arrive at all objects, without taking turns, and wait for their own. The cluster's barrier keeps a fast
// block from arriving for the next phase where a slow one has yet to arrive for this.
__global__ void remote_all_kernel(Params p) {
#if WARPWRIGHT_SM90A
  __shared__ ptx::Mbarrier barrier;
  const unsigned t = threadIdx.x, size = ptx::cluster_size();
  if (t == 0) {
    ptx::mbarrier_init(&barrier, size);
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_sync();
  for (int phase = 0; phase < p.numbers[0]; ++phase) {
    if (t < size) ptx::mbarrier_arrive_remote(&barrier, t);
    ptx::mbarrier_wait(&barrier, phase & 1);
    ptx::cluster_sync();
  }
  p.output[blockIdx.x * kThreads + t] = ptx::mbarrier_test_wait(&barrier, p.numbers[0] & 1) ? 1 : 2;
  ptx::cluster_sync();
#endif
}

// numbers: blocks of the grid, of a cluster, then those of the kernel.
template <void (*kKernel)(Params), int kNumbers>
void cluster_case(Case c) {
  LaunchConfig config{dim3(static_cast<unsigned>(c.next())), dim3(kThreads)};
  config.cluster = c.next();
  launch("cluster_case", kKernel, config, make_params(c, kNumbers));
}

}  // namespace

std::span<const NamedCase> cluster_cases() {
  static constexpr NamedCase kCases[] = {
      {"cluster_place", cluster_case<cluster_place_kernel, 0>},
      {"cluster_memory", cluster_case<cluster_memory_kernel, 1>},
      {"remote_arrive", cluster_case<remote_arrive_kernel, 2>},
      {"remote_all", cluster_case<remote_all_kernel, 1>},
  };
  return kCases;
}

}  // namespace warpwright::conformance
