// What threads of a block meet at: named barriers, mbarrier objects, and setmaxnreg between producers and consumers.

#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/tile/turns.cuh"
#include "harness.h"

namespace warpwright::conformance {
namespace {

using namespace warpwright::cuda;

// Two halves of the block, each with a barrier of its own (numbers[0], numbers[1]), exchange values numbers[2] times.
__global__ void named_sync_kernel(Params p) {
  __shared__ uint32_t cells[128];
  const unsigned t = threadIdx.x, half = t / 64, partner = 64 * half + 63 - t % 64;
  const int id = p.numbers[half];
  uint32_t value = p.input[t];
  for (int round = 0; round < p.numbers[2]; ++round) {
    cells[t] = value;
    ptx::named_barrier_sync(id, 64);
    value = 3 * cells[partner] + static_cast<uint32_t>(round);
    ptx::named_barrier_sync(id, 64);
  }
  p.output[t] = value;
}

// Warps 1 to 3 produce and only arrive at barrier numbers[0]; warp 0 waits there, reads, and arrives at numbers[1].
__global__ void named_arrive_kernel(Params p) {
  __shared__ uint32_t cells[96];
  const unsigned t = threadIdx.x;
  uint32_t sum = 0;
  for (int round = 0; round < p.numbers[2]; ++round) {
    if (t >= 32) {
      if (round > 0) ptx::named_barrier_sync(p.numbers[1], 128);
      cells[t - 32] = p.input[96 * round + static_cast<int>(t) - 32];
      ptx::named_barrier_arrive(p.numbers[0], 128);
    } else {
      ptx::named_barrier_sync(p.numbers[0], 128);
      sum = 5 * sum + cells[t] + 2 * cells[32 + t] + 3 * cells[64 + t];
      if (round + 1 < p.numbers[2]) ptx::named_barrier_arrive(p.numbers[1], 128);
    }
  }
  if (t < 32) p.output[t] = sum;
}

// One thread arrives numbers[0] times a phase for numbers[1] phases, and looks before each arrival and after the last:
// for the phase that runs and for the one before it. Then the object ends and its memory starts another.
__global__ void mbarrier_trace_kernel(Params p) {
#if WARPWRIGHT_SM90A
  __shared__ ptx::Mbarrier barrier;
  uint32_t* to = p.output;
  for (int life = 0; life < 2; ++life) {
    ptx::mbarrier_init(&barrier, static_cast<unsigned>(p.numbers[0]));
    for (int phase = 0; phase < p.numbers[1]; ++phase) {
      const unsigned parity = phase & 1;
      for (int i = 0; i < p.numbers[0]; ++i) {
        *to++ = ptx::mbarrier_test_wait(&barrier, parity) ? 1 : 0;
        *to++ = ptx::mbarrier_test_wait(&barrier, parity ^ 1) ? 1 : 0;
        ptx::mbarrier_arrive(&barrier);
      }
      *to++ = ptx::mbarrier_test_wait(&barrier, parity) ? 1 : 0;
    }
    ptx::mbarrier_invalidate(&barrier);
    barrier.word = p.input[life];
    *to++ = static_cast<uint32_t>(barrier.word);
  }
#endif
}

// The ring's functions have no caller where the kernels are empty.
inline constexpr int kMaxStages = 4;
struct Ring {
  uint32_t cells[kMaxStages][256];
  ptx::Mbarrier full[kMaxStages], empty[kMaxStages];
};

[[maybe_unused]] __device__ __forceinline__ void init_ring(Ring& ring, int stages, unsigned producers,
                                                           unsigned consumers) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < stages; ++stage) {
      ptx::mbarrier_init(&ring.full[stage], producers);
      ptx::mbarrier_init(&ring.empty[stage], consumers);
    }
  }
  __syncthreads();
}

// items x producers words go through `stages` of the ring.
[[maybe_unused]] __device__ __forceinline__ void produce(Ring& ring, const Params& p, int stages, int items, unsigned t,
                                                         unsigned producers) {
  for (int item = 0; item < items; ++item) {
    const int stage = item % stages, turn = item / stages;
    if (turn > 0) ptx::mbarrier_wait(&ring.empty[stage], (turn - 1) & 1);
    ring.cells[stage][t] = p.input[static_cast<unsigned>(item) * producers + t];
    ptx::mbarrier_arrive(&ring.full[stage]);
  }
}

// Consumer t reads two cells of each item.
[[maybe_unused]] __device__ __forceinline__ uint32_t consume(Ring& ring, int stages, int items, unsigned t,
                                                             unsigned producers) {
  uint32_t sum = 0;
  for (int item = 0; item < items; ++item) {
    const int stage = item % stages, turn = item / stages;
    ptx::mbarrier_wait(&ring.full[stage], turn & 1);
    sum = 7 * sum + ring.cells[stage][t % producers] + 2 * ring.cells[stage][(5 * t + 1) % producers];
    ptx::mbarrier_arrive(&ring.empty[stage]);
  }
  return sum;
}

// numbers: stages, items, producers; the other threads of the block consume.
__global__ void mbarrier_ring_kernel(Params p) {
#if WARPWRIGHT_SM90A
  __shared__ Ring ring;
  const int stages = p.numbers[0], items = p.numbers[1];
  const auto producers = static_cast<unsigned>(p.numbers[2]);
  init_ring(ring, stages, producers, blockDim.x - producers);
  if (threadIdx.x < producers) {
    produce(ring, p, stages, items, threadIdx.x, producers);
  } else {
    const unsigned t = threadIdx.x - producers;
    p.output[t] = consume(ring, stages, items, t, producers);
  }
#endif
}

// The same with a warpgroup of producers that gives its registers to two of consumers.
__global__ void __launch_bounds__(384, 1) setmaxnreg_kernel(Params p) {
#if WARPWRIGHT_SM90A
  __shared__ Ring ring;
  const int stages = p.numbers[0], items = p.numbers[1];
  init_ring(ring, stages, 128, 256);
  if (threadIdx.x < 128) {
    ptx::release_registers<40>();
    produce(ring, p, stages, items, threadIdx.x, 128);
  } else {
    ptx::take_registers<232>();
    const unsigned t = threadIdx.x - 128;
    p.output[t] = consume(ring, stages, items, t, 128);
  }
#endif
}

// Three warpgroups hand an accumulator round, numbers[0] turns in all: no barrier but the turns orders them. A group of
// which no turn is left has gone when the last ones are passed to it.
__global__ void turns_kernel(Params p) {
#if WARPWRIGHT_SM90A
  constexpr int kGroups = 3;
  __shared__ ptx::Mbarrier passed[kGroups];
  __shared__ uint32_t cells[128];
  const int group = static_cast<int>(threadIdx.x) / 128;
  const unsigned t = threadIdx.x % 128;
  if (threadIdx.x == 0) {
    Turns<kGroups>::init(passed);
    for (uint32_t& cell : cells) cell = 1;
  }
  __syncthreads();
  Turns<kGroups> turns(passed, group);
  for (int turn = group; turn < p.numbers[0]; turn += kGroups) {
    turns.wait();
    cells[t] = 3 * cells[t] + p.input[turn * 128 + static_cast<int>(t)];
    turns.pass();
  }
  turns.wait();
  p.output[group * 128 + static_cast<int>(t)] = cells[t];
  turns.pass();
#endif
}

// numbers[0] threads of the block, then those of the kernel.
template <void (*kKernel)(Params), int kNumbers>
void barrier_case(Case c) {
  const auto threads = static_cast<unsigned>(c.next());
  launch("barrier_case", kKernel, {dim3(1), dim3(threads)}, make_params(c, kNumbers));
}

}  // namespace

std::span<const NamedCase> barrier_cases() {
  static constexpr NamedCase kCases[] = {
      {"named_sync", barrier_case<named_sync_kernel, 3>},
      {"named_arrive", barrier_case<named_arrive_kernel, 3>},
      {"mbarrier_trace", barrier_case<mbarrier_trace_kernel, 2>},
      {"mbarrier_ring", barrier_case<mbarrier_ring_kernel, 3>},
      {"setmaxnreg", barrier_case<setmaxnreg_kernel, 2>},
      {"turns", barrier_case<turns_kernel, 1>},
  };
  return kCases;
}

}  // namespace warpwright::conformance
