// Watches what a kernel reads and writes. The kernels are compiled with the compiler's instrumentation for
// ThreadSanitizer, whose callbacks memory.cpp answers itself: with the emulator's threads and barriers in the place of
// the operating system's.
//
// Two accesses to one byte, at least one a write, by different threads, must be ordered by barriers: those of the
// block, or, within a warp, any exchange. That does not depend on the order in which the threads happen to run, so a
// missing barrier is found whatever the seed. Blocks of a grid are never ordered.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace warpwright::emulator {

// [begin, end) in bytes.
struct Range {
  uintptr_t begin = 0, end = 0;
  bool holds(uintptr_t address) const { return address >= begin && address < end; }
  size_t size() const { return end - begin; }
};

// One access, as far as later ones need it.
struct Access {
  static constexpr uint16_t kNone = 0xffff;
  uint32_t line = 0;  // Offset of the return address from `code_base()`.
  uint32_t block = 0, clock = 0;
  uint16_t thread = kNone;
};

class Memory {
 public:
  // Forgets everything; blocks of `threads` threads follow.
  void start_launch(unsigned threads);
  // Forgets the shared memory of the block before. `guarded` is dynamic shared memory with its guards.
  void start_block(uint32_t block, Range variables, Range dynamic, Range guarded);

  void block_barrier();
  void warp_barrier(unsigned warp);

  // What is wrong with this access of a thread of the block, or nothing.
  std::string check(uintptr_t address, size_t size, bool write, unsigned thread, const void* code);
  bool is_shared(uintptr_t address) const { return variables_.holds(address) || dynamic_.holds(address); }
  // The same for the write of an asynchronous copy to shared memory; until finish_copy nobody may touch the bytes. From
  // then on they count as written by the thread that has waited.
  std::string start_copy(uintptr_t address, size_t size, unsigned thread, const void* code);
  void finish_copy(uintptr_t address, size_t size, unsigned thread, const void* code);

 private:
  // A byte: its last write, and two of the reads since then, of different threads if there were any.
  struct Byte {
    uint32_t generation = 0;
    bool in_flight = false;  // The write is that of a copy which nobody has waited for.
    Access write;
    Access reads[2];
  };
  static constexpr size_t kPage = 1024;

  enum class Fault { kNone, kInFlight, kUnwritten, kWrite, kRead };

  // The bytes from `address` on, as many as lie together, at most `size`; `count` is how many.
  Byte* bytes_at(uintptr_t address, size_t size, size_t* count);
  Access now(unsigned thread, const void* code) const;
  bool ordered(const Access& before, const Access& now) const;
  // Notes an access, unless an earlier one stands against it: that one is `*other`.
  Fault note(Byte& byte, bool shared, bool write, const Access& now, Access* other) const;
  std::string text_of(Fault fault, bool shared, bool write, const Access& other) const;

  uint32_t generation_ = 0;        // Of what is forgotten at each launch: global memory.
  uint32_t block_generation_ = 0;  // And at each block: shared memory.
  uint32_t block_ = 0;
  unsigned warps_ = 0;
  std::vector<uint32_t> clocks_;  // (warps, warps): what each warp knows of each; its own counts its barriers.
  Range variables_, dynamic_, guarded_;
  std::vector<Byte> variable_bytes_, dynamic_bytes_;
  std::unordered_map<uintptr_t, std::unique_ptr<Byte[]>> pages_;  // Global memory.
  static constexpr size_t kRecent = 64;
  struct Recent {
    uintptr_t page = ~uintptr_t{0};
    Byte* bytes = nullptr;
  } recent_[kRecent];  // The map's last answers, by the page's last digits.
};

// In runtime.cpp, for the callbacks: checks an access of the running thread; stops the launch with `what` against that
// thread. Neither does anything outside a kernel, and where something is wrong neither returns.
void on_access(const void* address, size_t size, bool write, const void* code);
void stop_thread(const std::string& what);

// Where this library lies in memory.
uintptr_t code_base();
// "file.cu:12" of a return address inside this library, outside the emulator's own headers where that can be told.
std::string source_line(const void* code);

}  // namespace warpwright::emulator
