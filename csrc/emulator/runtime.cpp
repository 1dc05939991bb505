// The scheduler: runs a grid cluster by cluster, the threads of a cluster's blocks as fibers in shuffled order.

#include "emulator/runtime.h"

#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>

#include "emulator/allocation.h"
#include "emulator/host.h"
#include "emulator/machine.h"

namespace warpwright::emulator {

Machine& machine() {
  static Machine instance;
  return instance;
}

std::mutex& launch_mutex() {
  static std::mutex instance;
  return instance;
}

namespace {

constexpr int kMaxSharedBytes = 227 * 1024;  // A block's limit on sm_90.
constexpr unsigned kMaxThreads = 1024, kMaxGridYZ = 65535;
constexpr int kMaxCluster = 8;                // The portable limit.
constexpr unsigned char kPoison = 0xff;       // A NaN in every floating type.
constexpr size_t kGuardBytes = 1024;          // Before and after dynamic shared memory.
constexpr uintptr_t kSharedAlignment = 1024;  // Of dynamic shared memory, see cuda/runtime.h.
constexpr int kFruitlessRounds = 100'000;     // Until threads that only look at a barrier are called stuck.

uint64_t from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

[[noreturn]] void refuse(const Launch& launch, const std::string& what) {
  throw std::runtime_error(std::string("warpwright emulator: kernel ") + launch.name + ": " + what);
}

void check_limits(const Launch& launch) {
  const dim3 &g = launch.grid, &b = launch.block;
  const unsigned threads = b.x * b.y * b.z;
  if (threads == 0 || threads > kMaxThreads)
    refuse(launch, "a block has " + std::to_string(threads) + " threads, 1 to 1024 are possible");
  if (g.x == 0 || g.x > 0x7fffffffu || g.y == 0 || g.y > kMaxGridYZ || g.z == 0 || g.z > kMaxGridYZ) {
    refuse(launch, "the grid (" + std::to_string(g.x) + ", " + std::to_string(g.y) + ", " + std::to_string(g.z) +
                       ") is empty or beyond (2147483647, 65535, 65535)");
  }
  if (launch.shared_bytes > kMaxSharedBytes) {
    refuse(launch, std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory, at most " +
                       std::to_string(kMaxSharedBytes) + " are possible");
  }
  if (launch.cluster < 1 || launch.cluster > kMaxCluster || g.x % static_cast<unsigned>(launch.cluster) != 0) {
    refuse(launch, "clusters of " + std::to_string(launch.cluster) + " blocks in a grid " + std::to_string(g.x) +
                       " blocks wide: 1 to 8 are possible, and the width must be a multiple");
  }
}

void thread_main(void* argument) {
  Machine& m = machine();
  auto* thread = static_cast<Thread*>(argument);
  try {
    (*m.body)();
    thread_ended(m, *thread);
  } catch (...) {
    if (!m.error) m.error = std::current_exception();
  }
  thread->state = State::kDone;
}

// Frees the warps whose exchange is complete; false when none could be freed.
bool release_warps(Machine& m) {
  bool any = false;
  for (size_t w = 0; w < m.warps.size(); ++w) {
    Warp& warp = m.warps[w];
    if (warp.arrived == 0) continue;
    const size_t block_warps = (m.block_threads + kWarpSize - 1) / kWarpSize;
    const size_t first = w / block_warps * m.block_threads + w % block_warps * kWarpSize;
    const size_t last = std::min(first + kWarpSize, (w / block_warps + 1) * m.block_threads);
    bool complete = true, orders = false;
    for (size_t i = first; i < last; ++i) {
      const Thread& t = m.threads[i];
      if (t.state != State::kWarp) continue;
      orders |= t.orders_memory;
      const unsigned there = last - first == kWarpSize ? ~0u : (1u << (last - first)) - 1u;
      complete &= (t.warp_mask & there & ~warp.arrived) == 0;
    }
    if (!complete) continue;
    Gathered gathered;
    for (size_t i = first; i < last; ++i) {
      if (m.threads[i].state == State::kWarp && orders) m.clocks().release(static_cast<Agent>(i), gathered);
    }
    const Knowledge published = orders ? gathered.merged() : Knowledge{};
    for (size_t i = first; i < last; ++i) {
      if (m.threads[i].state != State::kWarp) continue;
      if (orders) m.clocks().acquire(static_cast<Agent>(i), published);
      m.threads[i].state = State::kReady;
    }
    warp.arrived = 0;
    ++warp.generation;
    any = true;
  }
  return any;
}

[[noreturn]] void report_deadlock(const Machine& m) {
  int barrier = 0, named = 0, warp = 0, done = 0;
  std::map<std::string, int> others;
  const Thread* stuck = nullptr;
  for (const Thread& t : m.threads) {
    barrier += t.state == State::kBarrier && t.barrier == 0;
    named += t.state == State::kBarrier && t.barrier != 0;
    warp += t.state == State::kWarp;
    done += t.state == State::kDone;
    const std::string waits = describe_wait(m, t);
    if (!waits.empty()) ++others[waits];
    if (stuck == nullptr && t.state != State::kDone) stuck = &t;
  }
  std::ostringstream text;
  text << place(m, *stuck) << "deadlock: " << barrier << " threads wait at __syncthreads, " << warp
       << " in a warp exchange, " << done << " have ended";
  if (named > 0) text << ", " << named << " at named barriers";
  for (const auto& [waits, count] : others) text << ", " << count << " " << waits;
  throw std::runtime_error(text.str());
}

// Touched, so that this host thread has its copy of the thread-local variables; overwritten like the rest of them.
thread_local unsigned char anchor;

// Every variable of this library that is thread-local, which are the shared variables of its kernels.
Range shared_variables() {
  volatile unsigned char* const inside = &anchor;
  *inside = kPoison;
  Range found;
  const auto look = [](dl_phdr_info* library, size_t, void* result) {
    const auto data = reinterpret_cast<uintptr_t>(library->dlpi_tls_data);
    for (int i = 0; data != 0 && i < library->dlpi_phnum; ++i) {
      const auto& segment = library->dlpi_phdr[i];
      const Range range{data, data + segment.p_memsz};
      if (segment.p_type != PT_TLS || !range.holds(reinterpret_cast<uintptr_t>(&anchor))) continue;
      *static_cast<Range*>(result) = range;
      return 1;
    }
    return 0;
  };
  if (dl_iterate_phdr(look, &found) != 1) throw std::logic_error("warpwright emulator: no shared variables found");
  return found;
}

// Runs `job` on the host thread of a block: the caller's for the first one of a cluster.
void on_host(Machine& m, size_t block, const std::function<void()>& job) {
  if (block == 0) return job();
  while (m.hosts.size() < block) m.hosts.push_back(std::make_unique<Host>());
  const std::thread::id caller = m.host.load();
  std::exception_ptr error;
  m.hosts[block - 1]->run([&] {
    m.host = std::this_thread::get_id();
    try {
      job();
    } catch (...) {
      error = std::current_exception();
    }
  });
  m.host = caller;
  if (error) std::rethrow_exception(error);
}

SharedMemory fresh_shared_memory(Machine& m, Block& block, size_t index) {
  const auto bytes = static_cast<size_t>(m.launch->shared_bytes);
  block.storage.assign(bytes + 2 * kGuardBytes + kSharedAlignment, kPoison);
  const auto lowest = reinterpret_cast<uintptr_t>(block.storage.data()) + kGuardBytes;
  const uintptr_t dynamic = (lowest + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
  block.dynamic = reinterpret_cast<unsigned char*>(dynamic);
  Range variables;
  on_host(m, index, [&] {
    variables = shared_variables();
    std::memset(reinterpret_cast<void*>(variables.begin), kPoison, variables.size());
  });
  return {variables, {dynamic, dynamic + bytes}, {dynamic - kGuardBytes, dynamic + bytes + kGuardBytes}};
}

void start_cluster(Machine& m, uint32_t index, uint3 first) {
  const Launch& launch = *m.launch;
  const auto count = static_cast<size_t>(launch.cluster);
  m.block_threads = launch.block.x * launch.block.y * launch.block.z;
  const size_t block_warps = (m.block_threads + kWarpSize - 1) / kWarpSize;
  m.blocks.resize(count);
  std::vector<SharedMemory> shared;
  for (size_t i = 0; i < count; ++i) {
    Block& block = m.blocks[i];
    shared.push_back(fresh_shared_memory(m, block, i));
    block.barriers.fill({});
    block.free_registers = 0;
    block.running = m.block_threads;
  }
  m.memory.start_cluster(index, m.block_threads, std::move(shared));
  m.mbarriers.clear();
  m.pending.clear();
  m.cluster_phase = 0;
  m.cluster_gathered = {};
  m.cluster_published = {};
  m.warps.assign(count * block_warps, Warp{});
  for (Warp& warp : m.warps) warp.registers = registers_at_launch(m.block_threads);
  m.warpgroups.assign(count * ((m.block_threads + kWarpgroupSize - 1) / kWarpgroupSize), Warpgroup{});
  while (m.threads.size() < count * m.block_threads) m.threads.emplace_back().fiber = std::make_unique<Fiber>();
  m.threads.resize(count * m.block_threads);
  for (size_t i = 0; i < m.threads.size(); ++i) {
    const auto block = static_cast<unsigned>(i / m.block_threads), x = static_cast<unsigned>(i % m.block_threads);
    std::unique_ptr<Fiber> fiber = std::move(m.threads[i].fiber);
    m.threads[i] = Thread{};
    Thread& t = m.threads[i];
    t.fiber = std::move(fiber);
    t.context = {{x % launch.block.x, x / launch.block.x % launch.block.y, x / launch.block.x / launch.block.y},
                 {first.x + block, first.y, first.z},
                 launch.block,
                 launch.grid};
    t.block = block;
    t.state = State::kReady;
    t.fiber->prepare(thread_main, &t);
  }
}

// The threads of each block that can go on; the warps that are held back only where nobody else can.
std::vector<std::vector<Thread*>> ready_threads(Machine& m) {
  const size_t block_warps = (m.block_threads + kWarpSize - 1) / kWarpSize;
  for (Warp& warp : m.warps) warp.held_back = m.warps.size() > 1 && m.chance(4);
  std::vector<std::vector<Thread*>> ready(m.blocks.size());
  for (const bool all : {false, true}) {
    bool any = false;
    for (size_t i = 0; i < m.threads.size(); ++i) {
      Thread& t = m.threads[i];
      const size_t warp = t.block * block_warps + i % m.block_threads / kWarpSize;
      if (t.state != State::kReady || (!all && m.warps[warp].held_back)) continue;
      ready[t.block].push_back(&t);
      any = true;
    }
    if (any) break;
  }
  return ready;
}

void let_one_happen(Machine& m) {
  const size_t which = m.random() % m.pending.size();
  const Pending chosen = std::move(m.pending[which]);
  m.pending.erase(m.pending.begin() + static_cast<ptrdiff_t>(which));
  chosen.happen();
  if (m.error) std::rethrow_exception(m.error);
}

// Returns how many threads ran.
size_t run_ready(Machine& m, std::vector<std::vector<Thread*>> ready) {
  size_t ran = 0;
  std::vector<size_t> order(ready.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), m.random);
  for (const size_t block : order) {
    if (ready[block].empty()) continue;
    ran += ready[block].size();
    std::shuffle(ready[block].begin(), ready[block].end(), m.random);
    on_host(m, block, [&] {
      for (Thread* t : ready[block]) {
        m.running = t;
        t->fiber->resume();
        m.running = nullptr;
        if (m.error) return;
      }
    });
    if (m.error) std::rethrow_exception(m.error);
    while (!m.pending.empty() && m.chance(4)) let_one_happen(m);
  }
  return ran;
}

void run_cluster(Machine& m, uint32_t index, uint3 first) {
  start_cluster(m, index, first);
  for (int fruitless = 0;;) {
    size_t done = 0, ready = 0;
    for (const Thread& t : m.threads) {
      done += t.state == State::kDone;
      ready += t.state == State::kReady;
    }
    if (done == m.threads.size()) break;
    if (ready > 0) {
      // Threads that look at a barrier in a loop are always ready.
      m.fruitless_looks = 0;
      const bool progress = run_ready(m, ready_threads(m)) != m.fruitless_looks || !m.pending.empty();
      fruitless = progress ? 0 : fruitless + 1;
      if (fruitless > kFruitlessRounds) report_deadlock(m);
    } else if (!release_warps(m)) {
      if (m.pending.empty()) report_deadlock(m);
      let_one_happen(m);
    }
  }
  while (!m.pending.empty()) let_one_happen(m);
  const auto damaged = [](const unsigned char* p) {
    return std::any_of(p, p + kGuardBytes, [](unsigned char c) { return c != kPoison; });
  };
  for (const Block& block : m.blocks) {
    if (damaged(block.dynamic - kGuardBytes) || damaged(block.dynamic + m.launch->shared_bytes)) {
      throw std::runtime_error(place(m, m.threads[0]) + "dynamic shared memory was written out of bounds");
    }
  }
}

}  // namespace

std::string place(const Machine& m, const Thread& t) {
  std::ostringstream text;
  text << "warpwright emulator: kernel " << m.launch->name << ", block (" << t.context.block.x << ", "
       << t.context.block.y << ", " << t.context.block.z << "), thread (" << t.context.thread.x << ", "
       << t.context.thread.y << ", " << t.context.thread.z << "): ";
  return text.str();
}

int capability() { return static_cast<int>(from_environment("WARPWRIGHT_EMULATOR_ARCH", 90)); }
int multiprocessors() { return static_cast<int>(from_environment("WARPWRIGHT_EMULATOR_MULTIPROCESSORS", 2)); }

ThreadContext& current() { return machine().running->context; }

unsigned char* dynamic_shared() {
  Machine& m = machine();
  return m.blocks[m.running->block].dynamic;
}

uint32_t shared_offset(const void* address) {
  Machine& m = machine();
  const SharedMemory& shared = m.memory.blocks()[m.running->block];
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (at < shared.dynamic.begin || at > shared.dynamic.end) stop("not an address of the block's dynamic shared memory");
  return static_cast<uint32_t>(at - shared.dynamic.begin) + kSharedWindow;
}

void wait(Thread& self, State state) {
  self.state = state;
  self.fiber->suspend();
}

const WarpWords& warp_exchange(unsigned mask, const uint32_t* words, int count, bool orders_memory) {
  Machine& m = machine();
  Thread& self = *m.running;
  const size_t in_block = m.index(self) % m.block_threads;
  const size_t block_warps = (m.block_threads + kWarpSize - 1) / kWarpSize;
  Warp& warp = m.warps[self.block * block_warps + in_block / kWarpSize];
  const unsigned lane = in_block % kWarpSize;
  if ((mask >> lane & 1u) == 0) stop_thread("a warp exchange whose mask leaves out the caller");
  WarpWords& buffer = warp.buffers[warp.generation & 1];
  std::copy_n(words, count, buffer.lane[lane]);
  warp.arrived |= 1u << lane;
  self.warp_mask = mask;
  self.orders_memory = orders_memory;
  wait(self, State::kWarp);
  return buffer;
}

bool elected() {
  warp_exchange(0xffffffffu, nullptr, 0);
  return static_cast<unsigned>(lane_id()) == machine().elected_lane;
}

Thread* running(Machine& m) {
  return m.host.load(std::memory_order_relaxed) == std::this_thread::get_id() ? m.running : nullptr;
}

void stop_for(Machine& m, Agent thread, const std::string& what) {
  if (!m.error) m.error = std::make_exception_ptr(std::runtime_error(place(m, m.threads[thread]) + what));
  // The instrumented code knows no exceptions here: the scheduler throws this one, and drops the fiber.
  if (Thread* const self = running(m); self != nullptr) {
    for (;;) self->fiber->suspend();
  }
}

void stop_thread(const std::string& what) {
  Machine& m = machine();
  Thread* const self = running(m);
  if (self != nullptr) stop_for(m, m.index(*self), what);
}

void stop(const std::string& what) { stop_thread(calling_line() + ": " + what); }
void stop(const char* what) { stop(std::string(what)); }

void require_shared(const void* address, int alignment) {
  Machine& m = machine();
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (!m.memory.blocks()[m.running->block].holds(at))
    stop_thread(source_line(__builtin_return_address(0)) + ": not an address of shared memory");
  if (at % alignment == 0) return;
  stop_thread(source_line(__builtin_return_address(0)) + ": misaligned access, " + std::to_string(alignment) +
              "-byte alignment is needed and the address is " + std::to_string(at % alignment) + " bytes off");
}

std::string check_access(Machine& m, uintptr_t address, size_t size, bool write, const Actor& actor, const void* code) {
  const int block = m.memory.block_of(address);
  if (block >= 0 && m.blocks[static_cast<size_t>(block)].running == 0) {
    return std::string(write ? "write" : "read") + " of the shared memory of a block that has ended";
  }
  if (block < 0) {
    const std::string outside = outside_allocation(reinterpret_cast<const void*>(address), size, write);
    if (!outside.empty()) return outside;
    const std::string beside = outside_ranges(m.tensors.empty() ? m.allowed : m.tensors, address, size, write);
    if (!beside.empty()) return beside;
    m.traffic.note(address, size, write);
  }
  return m.memory.check(address, size, write, actor, code);
}

void on_access(const void* address, size_t size, bool write, const void* code) {
  Machine& m = machine();
  Thread* const self = running(m);
  if (self == nullptr) return;
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto within = [&](const auto& list) {
    const auto begin = reinterpret_cast<uintptr_t>(list.data());
    return at - begin < list.size() * sizeof(list[0]);
  };
  std::string wrong;
  // A thread's own variables are nobody else's business, but the tensor cores'.
  if (self->fiber->holds(address)) {
    wrong = check_registers(*self, at, size, write);
  } else if (!within(m.threads) && !within(m.warps)) {  // Its coordinates and exchanges are the emulator's.
    wrong = check_access(m, at, size, write, m.memory.thread(m.index(*self)), code);
  }
  if (!wrong.empty()) stop_thread(source_line(code) + ": " + wrong);
}

void check_atomic(const void* address, size_t size, const void* code) {
  Machine& m = machine();
  Thread* const self = running(m);
  if (self == nullptr) return;
  Actor actor = m.memory.thread(m.index(*self));
  actor.atomic = true;
  const std::string wrong = check_access(m, reinterpret_cast<uintptr_t>(address), size, true, actor, code);
  if (!wrong.empty()) stop_thread(source_line(code) + ": " + wrong);
}

void run(const Launch& launch, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(launch_mutex());
  check_limits(launch);
  Machine& m = machine();
  if (m.noted) {
    m.noted->insert(launch.kernel);
    return;
  }
  m.host = std::this_thread::get_id();
  m.memory.start_launch();
  m.launch = &launch;
  m.body = &body;
  m.tensors = tensors_of_call();
  m.traffic.start_launch(launch.name, m.tensors);
  m.error = nullptr;
  m.random.seed(from_environment("WARPWRIGHT_EMULATOR_SEED", 0));
  m.elected_lane = m.random() % kWarpSize;
  ++m.launches[launch.name];
  m.kernels.insert(launch.kernel);
  const uint64_t width = launch.grid.x / static_cast<unsigned>(launch.cluster);
  std::vector<uint64_t> clusters(width * launch.grid.y * launch.grid.z);
  for (uint64_t i = 0; i < clusters.size(); ++i) clusters[i] = i;
  std::shuffle(clusters.begin(), clusters.end(), m.random);
  try {
    for (uint64_t i : clusters) {
      const auto x = static_cast<unsigned>(i % width) * static_cast<unsigned>(launch.cluster);
      const auto y = static_cast<unsigned>(i / width % launch.grid.y);
      run_cluster(m, static_cast<uint32_t>(i), {x, y, static_cast<unsigned>(i / width / launch.grid.y)});
    }
  } catch (...) {
    // Fibers that never ended hold frames of the kernel: start the next launch with new ones.
    m.threads.clear();
    m.pending.clear();
    m.running = nullptr;
    m.host = std::thread::id{};
    throw;
  }
  m.host = std::thread::id{};
}

}  // namespace warpwright::emulator
