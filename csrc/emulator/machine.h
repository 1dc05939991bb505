// What a launch consists of while it runs; for the files of the emulator alone.

#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "emulator/fiber.h"
#include "emulator/memory.h"
#include "emulator/runtime.h"
#include "emulator/traffic.h"

namespace warpwright::emulator {

inline constexpr int kWarpgroupSize = 4 * kWarpSize;
// Where a block's dynamic shared memory starts in the hardware's numbering of its shared memory.
inline constexpr uint32_t kSharedWindow = 1024;

// A cp.async on its way.
struct Copy {
  unsigned char* shared;
  const void* global;
  int bytes, source_bytes;  // The rest are zeros.
  int64_t group;            // Of the thread's groups, which one it belongs to.
  bool moved;               // Its bytes have arrived already; the thread may not know.
  const void* code;
};

// A thread's copies, oldest first, and the number of the group that its next commit closes.
struct Copies {
  std::deque<Copy> started;
  int64_t open_group = 0;
};

// A store of TMA: what it reads, as long as it has not, and where that goes.
struct TensorStore {
  const unsigned char* shared;
  std::vector<Piece> pieces;
  AddFunction add;                  // Empty: the bytes replace what is there.
  std::vector<unsigned char> held;  // What it has read: 16 bytes a piece.
  bool has_read = false, written = false;
  int64_t group;
  const void* code;
};

struct TensorStores {
  std::deque<TensorStore> started;
  int64_t open_group = 0;
  Agent reader = kNobody, writer = kNobody;
};

// Registers that products on the tensor cores own: the thread finds NaN there, until it has waited.
struct HeldRegisters {
  void* at;
  std::vector<uint32_t> words;
  int64_t last_product;
};

struct Products {
  int64_t started = 0;                              // Products of the warpgroup that this thread has joined.
  std::vector<int64_t> groups;                      // Of each commit, how many it had started.
  bool fenced = false;                              // wgmma.fence, and nothing that undoes it since.
  std::vector<HeldRegisters> held;                  // Accumulators.
  std::vector<std::pair<Range, int64_t>> operands;  // Registers that are read, and the product that reads them.
  std::vector<Range> touched;                       // Accumulators of products that are over.
};

enum class State { kReady, kBarrier, kWarp, kMbarrier, kCluster, kRegisters, kProducts, kDone };

struct Thread {
  ThreadContext context;
  unsigned block = 0;  // Of the cluster.
  State state = State::kDone;
  unsigned warp_mask = 0;
  bool orders_memory = false;                        // What it waits for is __syncwarp.
  int barrier = 0;                                   // The named barrier it waits at.
  uintptr_t mbarrier = 0;                            // Or the mbarrier.
  bool at_cluster_barrier = false;                   // Has arrived at the phase that runs.
  uint32_t cluster_arrivals = 0, cluster_waits = 0;  // The phases it arrived at and waited for last, from 1.
  Copies copies;
  TensorStores stores;
  Products products;
  std::unique_ptr<Fiber> fiber;
};

struct Warp {
  WarpWords buffers[2];  // A lane may start the next exchange while another still reads the last.
  unsigned arrived = 0;
  int generation = 0;
  int registers = 0;       // Of each lane.
  bool held_back = false;  // Does not run this round.
};

struct NamedBarrier {
  int threads = 0, arrived = 0;  // 0 threads: nobody has arrived.
  Gathered gathered;
  Knowledge published;  // By those who made it complete.
};

struct MbarrierState {
  unsigned block;
  Access init;
  Agent owner, engine;     // Who initialised it; the agent of its asynchronous copies.
  bool published = false;  // fence.mbarrier_init since.
  unsigned expected;
  int64_t pending, bytes = 0;  // Arrivals and bytes that the phase still waits for.
  int64_t in_flight = 0;       // Bytes on their way, announced or not.
  uint32_t phase = 0;
  Gathered gathered;
  Knowledge published_by_phase;
};

struct Block {
  unsigned char* dynamic = nullptr;
  std::vector<unsigned char> storage;  // Of the dynamic shared memory, with its guards.
  std::array<NamedBarrier, 16> barriers;
  int free_registers = 0;
  unsigned running = 0;  // Threads that have not ended.
};

// A product of a warpgroup on the tensor cores.
struct Product {
  WarpgroupProduct kind;
  uint64_t a, b;
  bool a_in_registers, accumulate, done = false;
  void* d[kWarpgroupSize];
  uint32_t a_registers[kWarpgroupSize][4], metadata[kWarpgroupSize];
  int joined = 0;
  int lanes[4] = {};  // Of each warp, how many have joined.
  const void* code;
};

struct Warpgroup {
  std::deque<Product> products;
  int64_t first = 0;       // The number of the first of them.
  Agent agents = kNobody;  // A warp each.
};

// Something asynchronous that may happen at any moment from now on.
struct Pending {
  Agent thread;  // Who started it.
  const void* code;
  std::function<void()> happen;
};

// The host thread that runs a block of a cluster: each has its own copy of the static shared variables.
class Host;

struct Machine {
  const Launch* launch = nullptr;
  const std::function<void()>* body = nullptr;
  unsigned block_threads = 0;
  std::vector<Thread> threads;  // Of a cluster, block by block; the same for what follows.
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  std::vector<Block> blocks;
  std::vector<std::unique_ptr<Host>> hosts;
  std::map<uintptr_t, MbarrierState> mbarriers;
  std::deque<Pending> pending;
  uint32_t cluster_phase = 0;
  Gathered cluster_gathered;
  Knowledge cluster_published;
  std::atomic<std::thread::id> host;  // The thread that runs a kernel now; no thread's between launches.
  Thread* running = nullptr;
  Memory memory;
  // Global memory that kernels may touch: the tensors of the op that launches one, outside ops what a test allows, all
  // of it where there is neither.
  std::vector<Range> tensors, allowed;
  Traffic traffic;
  std::exception_ptr error;
  std::mt19937_64 random;
  unsigned elected_lane = 0;
  size_t fruitless_looks = 0;               // Of this round: at barriers whose phase is not over.
  std::map<std::string, int64_t> launches;  // By name, and which kernels they were.
  std::set<const void*> kernels;
  std::optional<std::set<const void*>> noted;  // There are launches that only note their kernel here.

  Agent index(const Thread& thread) const { return static_cast<Agent>(&thread - threads.data()); }
  Clocks& clocks() { return memory.clocks(); }
  bool chance(unsigned one_in) { return random() % one_in == 0; }
};

Machine& machine();
// Held while a kernel runs, and by who asks about those that have.
std::mutex& launch_mutex();

// The running thread, where that is this host thread's; null outside a kernel.
Thread* running(Machine& m);

// "warpwright emulator: kernel K, block (0, 0, 0), thread (0, 0, 0): ".
std::string place(const Machine& m, const Thread& t);

// Suspends the running thread until its state is kReady again.
void wait(Thread& self, State state);

// Checks an access of the running thread, see Memory; stops the launch where something is wrong.
void on_access(const void* address, size_t size, bool write, const void* code);
// The same for any actor: nothing, or what is wrong.
std::string check_access(Machine& m, uintptr_t address, size_t size, bool write, const Actor& actor, const void* code);
// Stops the launch with `what` against the running thread; returns only outside a kernel.
void stop_thread(const std::string& what);
// The same against a thread that started something which has gone wrong since.
void stop_for(Machine& m, Agent thread, const std::string& what);

// The registers of a thread when as many as fit are asked for: what a kernel with setmaxnreg is compiled to.
int registers_at_launch(unsigned threads);

// mbarrier.cpp
// Bytes of a copy that `thread` started in `phase` of the object have come.
void complete_bytes(Machine& m, uintptr_t address, int64_t bytes, uint32_t phase, Agent thread, const void* code);
// The object at `address` for a use of `thread`: initialised, and known to be so by it; to the async proxy, or to
// another block, too where `remote`.
MbarrierState& usable_mbarrier(Machine& m, const void* address, Agent thread, bool remote);
std::string describe_mbarrier(const MbarrierState& object);

// barriers.cpp
// What a thread waits for that is neither a barrier of the block nor an exchange of its warp; empty otherwise.
std::string describe_wait(const Machine& m, const Thread& t);
void thread_ended(Machine& m, Thread& t);

// tensor.cpp
void finish_stores(Machine& m, Thread& t);

// products.cpp
// What an access to the thread's own stack means for its products; empty, or what is wrong.
std::string check_registers(Thread& t, uintptr_t address, size_t size, bool write);

}  // namespace warpwright::emulator
