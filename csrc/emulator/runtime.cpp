// The scheduler: runs a grid block by block, the threads of a block as fibers in shuffled order.

#include "emulator/runtime.h"

#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>

#include "emulator/machine.h"

namespace warpwright::emulator {

Machine& machine() {
  static Machine instance;
  return instance;
}

namespace {

constexpr int kMaxSharedBytes = 227 * 1024;  // A block's limit on sm_90.
constexpr unsigned kMaxThreads = 1024, kMaxGridYZ = 65535;
constexpr unsigned char kPoison = 0xff;  // A NaN in every floating type.
constexpr int kGuardBytes = 256;
constexpr uintptr_t kSharedAlignment = 128;  // Of dynamic shared memory, see cuda/runtime.h.

std::mutex& launch_mutex() {
  static std::mutex instance;
  return instance;
}

uint64_t seed_from_environment() {
  const char* text = std::getenv("WARPWRIGHT_EMULATOR_SEED");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}

std::string place(const Machine& m, const Thread& t) {
  std::ostringstream text;
  text << "warpwright emulator: kernel " << m.launch->name << ", block (" << t.context.block.x << ", "
       << t.context.block.y << ", " << t.context.block.z << "), thread (" << t.context.thread.x << ", "
       << t.context.thread.y << ", " << t.context.thread.z << "): ";
  return text.str();
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
}

void thread_main(void* argument) {
  Machine& m = machine();
  auto* thread = static_cast<Thread*>(argument);
  try {
    (*m.body)();
  } catch (...) {
    if (!m.error) m.error = std::current_exception();
  }
  if (!m.error && !thread->copies.started.empty()) {
    m.error = std::make_exception_ptr(std::runtime_error(place(m, *thread) + "ends with " +
                                                         std::to_string(thread->copies.started.size()) +
                                                         " asynchronous copies that it has not waited for"));
  }
  thread->state = State::kDone;
}

// Frees the threads whose barrier or exchange is complete; false when none could be freed.
bool release(Machine& m) {
  bool any = false, waiting = false, all = true;
  for (const Thread& t : m.threads) {
    waiting |= t.state == State::kBarrier;
    all &= t.state == State::kBarrier;
  }
  if (waiting && all) {
    for (Thread& t : m.threads) t.state = State::kReady;
    m.memory.block_barrier();
    return true;
  }
  for (size_t w = 0; w < m.warps.size(); ++w) {
    Warp& warp = m.warps[w];
    if (warp.arrived == 0) continue;
    const size_t first = w * kWarpSize, last = std::min(first + kWarpSize, m.threads.size());
    bool complete = true, orders = false;
    for (size_t i = first; i < last; ++i) {
      const Thread& t = m.threads[i];
      if (t.state != State::kWarp) continue;
      orders |= t.orders_memory;
      const unsigned there = last - first == kWarpSize ? ~0u : (1u << (last - first)) - 1u;
      complete &= (t.warp_mask & there & ~warp.arrived) == 0;
    }
    if (!complete) continue;
    for (size_t i = first; i < last; ++i) {
      if (m.threads[i].state == State::kWarp) m.threads[i].state = State::kReady;
    }
    warp.arrived = 0;
    ++warp.generation;
    if (orders) m.memory.warp_barrier(static_cast<unsigned>(w));
    any = true;
  }
  return any;
}

[[noreturn]] void report_deadlock(const Machine& m) {
  int barrier = 0, warp = 0, done = 0;
  const Thread* stuck = nullptr;
  for (const Thread& t : m.threads) {
    barrier += t.state == State::kBarrier;
    warp += t.state == State::kWarp;
    done += t.state == State::kDone;
    if (stuck == nullptr && t.state != State::kDone) stuck = &t;
  }
  std::ostringstream text;
  text << place(m, *stuck) << "deadlock: " << barrier << " threads wait at __syncthreads, " << warp
       << " in a warp exchange, " << done << " have ended";
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

void run_block(Machine& m, uint32_t index, uint3 block) {
  const Launch& launch = *m.launch;
  const size_t count = static_cast<size_t>(launch.block.x) * launch.block.y * launch.block.z;
  const Range variables = shared_variables();
  std::memset(reinterpret_cast<void*>(variables.begin), kPoison, variables.size());
  m.dynamic.assign(static_cast<size_t>(launch.shared_bytes) + 2 * kGuardBytes + kSharedAlignment, kPoison);
  const auto dynamic = reinterpret_cast<uintptr_t>(dynamic_shared());
  const Range inner{dynamic, dynamic + static_cast<size_t>(launch.shared_bytes)};
  m.memory.start_block(index, variables, inner, {inner.begin - kGuardBytes, inner.end + kGuardBytes});
  m.warps.assign((count + kWarpSize - 1) / kWarpSize, Warp{});
  while (m.threads.size() < count) m.threads.emplace_back().fiber = std::make_unique<Fiber>();
  m.threads.resize(count);
  for (size_t i = 0; i < count; ++i) {
    Thread& t = m.threads[i];
    const auto x = static_cast<unsigned>(i);
    t.context = {{x % launch.block.x, x / launch.block.x % launch.block.y, x / launch.block.x / launch.block.y},
                 block,
                 launch.block,
                 launch.grid};
    t.state = State::kReady;
    t.copies = {};
    t.fiber->prepare(thread_main, &t);
  }
  std::vector<Thread*> ready;
  for (;;) {
    ready.clear();
    size_t done = 0;
    for (Thread& t : m.threads) {
      if (t.state == State::kReady) ready.push_back(&t);
      done += t.state == State::kDone;
    }
    if (done == count) break;
    if (ready.empty()) {
      if (!release(m)) report_deadlock(m);
      continue;
    }
    std::shuffle(ready.begin(), ready.end(), m.random);
    for (Thread* t : ready) {
      m.running = t;
      t->fiber->resume();
      m.running = nullptr;
      if (m.error) std::rethrow_exception(m.error);
    }
  }
  const auto damaged = [](const unsigned char* p) {
    return std::any_of(p, p + kGuardBytes, [](unsigned char c) { return c != kPoison; });
  };
  if (damaged(dynamic_shared() - kGuardBytes) || damaged(dynamic_shared() + launch.shared_bytes)) {
    throw std::runtime_error(place(m, m.threads[0]) + "dynamic shared memory was written out of bounds");
  }
}

}  // namespace

ThreadContext& current() { return machine().running->context; }

unsigned char* dynamic_shared() {
  const auto lowest = reinterpret_cast<uintptr_t>(machine().dynamic.data() + kGuardBytes);
  return reinterpret_cast<unsigned char*>((lowest + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment);
}

void sync_block() {
  Thread* self = machine().running;
  self->state = State::kBarrier;
  self->fiber->suspend();
}

const WarpWords& warp_exchange(unsigned mask, const uint32_t* words, int count, bool orders_memory) {
  Machine& m = machine();
  Thread* self = m.running;
  const auto index = static_cast<size_t>(self - m.threads.data());
  Warp& warp = m.warps[index / kWarpSize];
  const unsigned lane = index % kWarpSize;
  if ((mask >> lane & 1u) == 0) stop_thread("a warp exchange whose mask leaves out the caller");
  WarpWords& buffer = warp.buffers[warp.generation & 1];
  std::copy_n(words, count, buffer.lane[lane]);
  warp.arrived |= 1u << lane;
  self->warp_mask = mask;
  self->orders_memory = orders_memory;
  self->state = State::kWarp;
  self->fiber->suspend();
  return buffer;
}

Thread* running(Machine& m) {
  return m.host.load(std::memory_order_relaxed) == std::this_thread::get_id() ? m.running : nullptr;
}

void stop_thread(const std::string& what) {
  Machine& m = machine();
  Thread* const self = running(m);
  if (self == nullptr) return;
  m.error = std::make_exception_ptr(std::runtime_error(place(m, *self) + what));
  // The instrumented code knows no exceptions here: the scheduler throws this one, and drops the fiber.
  for (;;) self->fiber->suspend();
}

void require_shared(const void* address, int alignment) {
  Machine& m = machine();
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (!m.memory.is_shared(at))
    stop_thread(source_line(__builtin_return_address(0)) + ": not an address of shared memory");
  if (at % alignment == 0) return;
  stop_thread(source_line(__builtin_return_address(0)) + ": misaligned access, " + std::to_string(alignment) +
              "-byte alignment is needed and the address is " + std::to_string(at % alignment) + " bytes off");
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
  // A thread's own variables are nobody else's business; its coordinates and exchanges are the emulator's.
  if (self->fiber->holds(address) || within(m.threads) || within(m.warps)) return;
  const auto index = static_cast<unsigned>(self - m.threads.data());
  const std::string wrong = m.memory.check(at, size, write, index, code);
  if (!wrong.empty()) stop_thread(source_line(code) + ": " + wrong);
}

void run(const Launch& launch, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(launch_mutex());
  check_limits(launch);
  Machine& m = machine();
  m.host = std::this_thread::get_id();
  m.memory.start_launch(launch.block.x * launch.block.y * launch.block.z);
  m.launch = &launch;
  m.body = &body;
  m.error = nullptr;
  m.random.seed(seed_from_environment());
  ++m.launches[launch.name];
  m.kernels.insert(launch.kernel);
  std::vector<uint64_t> blocks(static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z);
  for (uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), m.random);
  try {
    for (uint64_t i : blocks) {
      const uint64_t x = i % launch.grid.x, y = i / launch.grid.x % launch.grid.y,
                     z = i / launch.grid.x / launch.grid.y;
      run_block(m, static_cast<uint32_t>(i),
                {static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)});
    }
  } catch (...) {
    // Fibers that never ended hold frames of the kernel: start the next launch with new ones.
    m.threads.clear();
    m.running = nullptr;
    m.host = std::thread::id{};
    throw;
  }
  m.host = std::thread::id{};
}

}  // namespace warpwright::emulator

// How often a kernel was launched since the library was loaded, by the name that its launcher gives; for ctypes.
extern "C" __attribute__((visibility("default"))) int64_t warpwright_emulator_launches(const char* name) {
  const std::lock_guard<std::mutex> lock(warpwright::emulator::launch_mutex());
  const auto& launches = warpwright::emulator::machine().launches;
  const auto found = launches.find(name);
  return found == launches.end() ? 0 : found->second;
}

// Whether the kernel that starts at `offset` in this library was launched.
extern "C" __attribute__((visibility("default"))) int warpwright_emulator_reached(int64_t offset) {
  const std::lock_guard<std::mutex> lock(warpwright::emulator::launch_mutex());
  const auto address = warpwright::emulator::code_base() + static_cast<uintptr_t>(offset);
  return warpwright::emulator::machine().kernels.count(reinterpret_cast<const void*>(address)) != 0;
}
