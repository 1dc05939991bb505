// Watches what a kernel reads and writes. The kernels are compiled with the compiler's instrumentation for
// ThreadSanitizer, whose callbacks hooks.cpp answers itself: with the emulator's threads and barriers in the place of
// the operating system's.
//
// Two accesses to one byte, at least one a write, by different agents (clocks.h), must be ordered. That does not depend
// on the order in which the threads happen to run, so a missing barrier is found whatever the seed. Clusters of a grid
// are never ordered.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/clocks.h"

namespace warpwright::emulator {

// [begin, end) in bytes.
struct Range {
  uintptr_t begin = 0, end = 0;
  bool holds(uintptr_t address) const { return address >= begin && address < end; }
  bool holds(uintptr_t address, size_t size) const { return holds(address) && size <= end - address; }
  size_t size() const { return end - begin; }
};

// The shared memory of a block: its static variables, and the dynamic part with the bytes that guard it.
struct SharedMemory {
  Range variables, dynamic, guarded;
  bool holds(uintptr_t address) const { return variables.holds(address) || dynamic.holds(address); }
};

// Who accesses memory: `thread` for itself, or an engine, `agents` of them from `agent` on, for it.
struct Actor {
  Agent thread, agent;
  uint32_t clock;
  uint8_t agents = 1;    // All of them must be done before the access is over.
  bool async = false;    // By the async proxy.
  bool atomic = false;   // With other atomics it is no race.
  bool unnoted = false;  // Checked only: later accesses are not compared with it.
};

// One access, as far as later ones need it.
struct Access {
  uint32_t line = 0;  // Offset of the return address from `code_base()`.
  uint32_t cluster = 0, clock = 0;
  Agent agent = kNobody;
  uint8_t agents = 1;
  bool async = false, atomic = false;
};

class Memory {
 public:
  // Forgets everything.
  void start_launch();
  // Forgets the shared memory of the cluster before. Blocks have `threads` threads each.
  void start_cluster(uint32_t cluster, unsigned threads, std::vector<SharedMemory> blocks);

  Clocks& clocks() { return clocks_; }
  const std::vector<SharedMemory>& blocks() const { return blocks_; }
  // The block of the cluster in whose shared memory `address` lies, or -1.
  int block_of(uintptr_t address) const;

  // A thread's own access.
  Actor thread(Agent thread) const { return {thread, thread, clocks_.now(thread)}; }
  // What is wrong with an access, or nothing.
  std::string check(uintptr_t address, size_t size, bool write, const Actor& actor, const void* code);
  // The same for the write of a cp.async; until finish_copy nobody may touch the bytes. From then on they count as
  // written by the thread that has waited.
  std::string start_copy(uintptr_t address, size_t size, Agent thread, const void* code);
  void finish_copy(uintptr_t address, size_t size, Agent thread, const void* code);
  // From now on the bytes belong to an mbarrier object, or no longer do.
  void mark_mbarrier(uintptr_t address, size_t size, bool object, const Actor& actor, const void* code);
  Access access(const Actor& actor, const void* code) const;
  bool ordered(const Access& before, const Actor& actor, bool fenced) const;

 private:
  // A byte: its last write, and two of the reads since then, of different agents if there were any.
  struct Byte {
    uint32_t generation = 0;
    bool in_flight = false;  // The write is that of a cp.async which nobody has waited for.
    Access write;
    Access reads[2];
  };
  static constexpr size_t kPage = 1024;

  enum class Fault { kNone, kInFlight, kUnwritten, kWrite, kRead, kUnfenced };

  // The bytes from `address` on, as many as lie together, at most `size`; `count` is how many.
  Byte* bytes_at(uintptr_t address, size_t size, size_t* count);
  // Notes an access, unless an earlier one stands against it: that one is `*other`.
  Fault note(Byte& byte, bool shared, bool write, const Actor& actor, const Access& now, Access* other) const;
  std::string text_of(Fault fault, bool shared, bool write, const Actor& actor, const Access& other) const;

  uint32_t generation_ = 0;          // Of what is forgotten at each launch: global memory.
  uint32_t cluster_generation_ = 0;  // And at each cluster: shared memory.
  uint32_t cluster_ = 0;
  unsigned block_threads_ = 0;
  Clocks clocks_;
  std::vector<SharedMemory> blocks_;
  std::vector<std::vector<Byte>> shared_bytes_;  // Two for each block: of variables, of dynamic memory.
  std::unordered_map<uintptr_t, std::unique_ptr<Byte[]>> pages_;  // Global memory.
  static constexpr size_t kRecent = 64;
  struct Recent {
    uintptr_t page = ~uintptr_t{0};
    Byte* bytes = nullptr;
  } recent_[kRecent];  // The map's last answers, by the page's last digits.
};

// Where this library lies in memory.
uintptr_t code_base();
// "file.cu:12" of a return address inside this library, outside the emulator's own headers where that can be told.
std::string source_line(const void* code);
// The same of the innermost caller for which it can be told.
std::string calling_line();

}  // namespace warpwright::emulator
