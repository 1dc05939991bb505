// Barriers of blocks and clusters, and what else threads wait for each other with.

#include "emulator/machine.h"

namespace warpwright::emulator {
namespace {

void meet(Machine& m, Thread& self, int id, int threads, bool waits) {
  NamedBarrier& barrier = m.blocks[self.block].barriers[static_cast<size_t>(id)];
  if (barrier.threads == 0) barrier.threads = threads;
  if (barrier.threads != threads) {
    stop("barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads, of " +
         std::to_string(barrier.threads) + " for those that have arrived already");
  }
  m.clocks().release(m.index(self), barrier.gathered);
  if (++barrier.arrived < threads) {
    if (!waits) return;
    self.barrier = id;
    wait(self, State::kBarrier);
  } else {
    barrier.published = barrier.gathered.merged();
    barrier.gathered = {};
    barrier.threads = barrier.arrived = 0;
    for (Thread& t : m.threads) {
      if (t.block == self.block && t.state == State::kBarrier && t.barrier == id) {
        m.clocks().acquire(m.index(t), barrier.published);
        t.state = State::kReady;
      }
    }
    if (!waits) return;
    m.clocks().acquire(m.index(self), barrier.published);
    wait(self, State::kReady);  // The last one to arrive need not be the first one to go on.
  }
}

// Frees the threads that wait for the cluster's barrier, if everybody who can has arrived.
void complete_cluster_barrier(Machine& m) {
  bool any = false;
  for (const Thread& t : m.threads) {
    if (t.state != State::kDone && !t.at_cluster_barrier) return;
    any |= t.at_cluster_barrier;
  }
  if (!any) return;
  m.cluster_published = m.cluster_gathered.merged();
  m.cluster_gathered = {};
  ++m.cluster_phase;
  for (Thread& t : m.threads) {
    t.at_cluster_barrier = false;
    if (t.state == State::kCluster) t.state = State::kReady;
  }
}

}  // namespace

void sync_block() {
  Machine& m = machine();
  meet(m, *m.running, 0, static_cast<int>(m.block_threads), true);
}

void named_barrier(int id, int threads, bool waits) {
  Machine& m = machine();
  if (id < 0 || id > 15) stop("barrier " + std::to_string(id) + ": a block has barriers 0 to 15");
  if (threads <= 0 || threads % kWarpSize != 0) {
    stop("a barrier of " + std::to_string(threads) + " threads: whole warps only");
  }
  meet(m, *m.running, id, threads, waits);
}

unsigned cluster_rank() { return machine().running->block; }
unsigned cluster_size() { return static_cast<unsigned>(machine().blocks.size()); }

void cluster_arrive() {
  Machine& m = machine();
  Thread& self = *m.running;
  if (self.at_cluster_barrier || self.cluster_arrivals != self.cluster_waits) {
    stop("arrives at the cluster's barrier twice without having waited");
  }
  self.at_cluster_barrier = true;
  self.cluster_arrivals = m.cluster_phase + 1;
  m.clocks().release(m.index(self), m.cluster_gathered);
  complete_cluster_barrier(m);
}

void cluster_wait() {
  Machine& m = machine();
  Thread& self = *m.running;
  if (self.cluster_arrivals == self.cluster_waits) stop("waits at the cluster's barrier without having arrived");
  if (self.at_cluster_barrier) wait(self, State::kCluster);
  self.cluster_waits = self.cluster_arrivals;
  m.clocks().acquire(m.index(self), m.cluster_published);
}

void* map_shared(void* address, unsigned rank) {
  Machine& m = machine();
  const auto at = reinterpret_cast<uintptr_t>(address);
  const SharedMemory& own = m.memory.blocks()[m.running->block];
  if (!own.holds(at)) stop("mapa: not an address of the block's shared memory");
  if (rank >= m.blocks.size()) {
    stop("mapa: block " + std::to_string(rank) + " of a cluster of " + std::to_string(m.blocks.size()));
  }
  const SharedMemory& other = m.memory.blocks()[rank];
  const bool dynamic = own.dynamic.holds(at);
  const uintptr_t offset = at - (dynamic ? own.dynamic : own.variables).begin;
  return reinterpret_cast<void*>((dynamic ? other.dynamic : other.variables).begin + offset);
}

int registers_at_launch(unsigned threads) {
  constexpr unsigned kRegisters = 64 * 1024, kMost = 256, kGranule = 8;
  const unsigned warps = (threads + kWarpSize - 1) / kWarpSize;
  return static_cast<int>(std::min(kMost, kRegisters / (warps * kWarpSize) / kGranule * kGranule));
}

void set_registers(int count, bool take) {
  warp_exchange(0xffffffffu, nullptr, 0);
  Machine& m = machine();
  Thread& self = *m.running;
  const size_t in_block = m.index(self) % m.block_threads, block_warps = (m.block_threads + kWarpSize - 1) / kWarpSize;
  Warp& warp = m.warps[self.block * block_warps + in_block / kWarpSize];
  Block& block = m.blocks[self.block];
  if (in_block % kWarpSize == 0) {  // One lane acts for its warp.
    const int more = (count - warp.registers) * kWarpSize;
    if (take ? more < 0 : more > 0) {
      stop("setmaxnreg: " + std::string(take ? "takes" : "releases") + " registers down or up to " +
           std::to_string(count) + " from " + std::to_string(warp.registers));
    }
    while (block.free_registers < more) wait(self, State::kRegisters);
    block.free_registers -= more;
    warp.registers = count;
    for (Thread& t : m.threads) {
      if (t.block == self.block && t.state == State::kRegisters) t.state = State::kReady;
    }
  }
  warp_exchange(0xffffffffu, nullptr, 0);
}

void fence_proxy_async() {
  Machine& m = machine();
  m.clocks().fence(m.index(*m.running));
}

std::string describe_wait(const Machine& m, const Thread& t) {
  if (t.state == State::kMbarrier) {
    const auto found = m.mbarriers.find(t.mbarrier);
    return found == m.mbarriers.end() ? "at an mbarrier that is no more" : describe_mbarrier(found->second);
  }
  if (t.state == State::kCluster) return "at the cluster's barrier";
  if (t.state == State::kProducts) return "for products that other warps of the warpgroup have not started";
  if (t.state == State::kReady) return "looking at a barrier whose phase is never over";
  if (t.state == State::kRegisters) {
    return "for registers (setmaxnreg), of which the block has " + std::to_string(m.blocks[t.block].free_registers) +
           " left";
  }
  return "";
}

void thread_ended(Machine& m, Thread& t) {
  const auto wrong = [&](size_t count, const std::string& what) {
    if (count > 0) stop_thread("ends with " + std::to_string(count) + " " + what + " that it has not waited for");
  };
  wrong(t.copies.started.size(), "asynchronous copies");
  finish_stores(m, t);
  wrong(t.products.held.size(), "products on the tensor cores");
  --m.blocks[t.block].running;
  t.state = State::kDone;
  complete_cluster_barrier(m);
}

}  // namespace warpwright::emulator
