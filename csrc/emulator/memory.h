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

 private:
  // A byte: its last write, and two of the reads since then, of different threads if there were any.
  struct Byte {
    uint32_t generation = 0;
    Access write;
    Access reads[2];
  };
  static constexpr size_t kPage = 1024;

  Byte* byte_at(uintptr_t address);
  bool ordered(const Access& before, unsigned thread) const;
  std::string check_byte(Byte& byte, const char* what, uintptr_t address, bool write, const Access& now);
  std::string race(const char* space, const Access& before, bool before_writes, bool write) const;
  std::string who(const Access& access) const;

  uint32_t generation_ = 0;        // Of what is forgotten at each launch: global memory.
  uint32_t block_generation_ = 0;  // And at each block: shared memory.
  uint32_t block_ = 0;
  unsigned warps_ = 0;
  std::vector<uint32_t> clocks_;  // (warps, warps): what each warp knows of each; its own counts its barriers.
  Range variables_, dynamic_, guarded_;
  std::vector<Byte> variable_bytes_, dynamic_bytes_;
  std::unordered_map<uintptr_t, std::unique_ptr<Byte[]>> pages_;  // Global memory.
  uintptr_t last_page_ = ~uintptr_t{0};
  Byte* last_bytes_ = nullptr;
};

// In runtime.cpp, for the callbacks: checks an access of the running thread; stops the launch with `what` against that
// thread. Neither does anything outside a kernel, and where something is wrong neither returns.
void on_access(const void* address, size_t size, bool write, const void* code);
void stop_thread(const std::string& what);

// "file.cu:12" of a return address inside this library, outside the emulator's own headers where that can be told.
std::string source_line(const void* code);

}  // namespace warpwright::emulator
