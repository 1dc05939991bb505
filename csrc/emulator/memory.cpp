#include "emulator/memory.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <sstream>

namespace warpwright::emulator {
namespace {

constexpr unsigned kLanes = 32;
constexpr size_t kMostPages = 4096;  // Some 200 MiB of bytes' histories; then they are dropped between launches.

// Any address in this library: return addresses are kept as 32-bit distances from it.
uintptr_t code_base() {
  static const uintptr_t base = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&source_line), &info);
    return reinterpret_cast<uintptr_t>(info.dli_fbase);
  }();
  return base;
}

}  // namespace

std::string source_line(const void* code) {
  Dl_info info{};
  if (dladdr(code, &info) == 0 || info.dli_fname == nullptr) return "an unknown line";
  const uintptr_t offset =
      reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;  // Inside the call.
  std::ostringstream command;
  command << "addr2line -i -e '" << info.dli_fname << "' 0x" << std::hex << offset << " 2>/dev/null";
  std::string found;
  if (FILE* pipe = popen(command.str().c_str(), "r"); pipe != nullptr) {
    std::array<char, 4096> text{};
    while (std::fgets(text.data(), text.size(), pipe) != nullptr) {
      std::string line = text.data();
      line = line.substr(0, line.find_first_of(" \n"));
      const bool ours = line.find("/emulator/") != std::string::npos || line.find("/c++/") != std::string::npos;
      if (line.empty() || line[0] == '?' || ours) continue;  // Inlined into the kernel: its caller follows.
      found = line.substr(line.rfind('/') + 1);
      break;
    }
    pclose(pipe);
  }
  if (!found.empty()) return found;
  std::ostringstream text;
  text << "code offset 0x" << std::hex << offset;
  return text.str();
}

void Memory::start_launch(unsigned threads) {
  ++generation_;
  warps_ = (threads + kLanes - 1) / kLanes;
  if (pages_.size() > kMostPages) pages_.clear();
  last_page_ = ~uintptr_t{0};
}

void Memory::start_block(uint32_t block, Range variables, Range dynamic, Range guarded) {
  ++block_generation_;
  block_ = block;
  variables_ = variables;
  dynamic_ = dynamic;
  guarded_ = guarded;
  if (variable_bytes_.size() < variables.size()) variable_bytes_.resize(variables.size());
  if (dynamic_bytes_.size() < dynamic.size()) dynamic_bytes_.resize(dynamic.size());
  clocks_.assign(static_cast<size_t>(warps_) * warps_, 0);
  for (unsigned w = 0; w < warps_; ++w) clocks_[w * warps_ + w] = 1;
}

void Memory::block_barrier() {
  std::vector<uint32_t> known(warps_, 0);
  for (unsigned w = 0; w < warps_; ++w) known[w] = clocks_[w * warps_ + w];  // Nobody knows a warp better than itself.
  for (unsigned w = 0; w < warps_; ++w) {
    std::copy(known.begin(), known.end(), clocks_.begin() + w * warps_);
    ++clocks_[w * warps_ + w];
  }
}

void Memory::warp_barrier(unsigned warp) { ++clocks_[warp * warps_ + warp]; }

bool Memory::ordered(const Access& before, unsigned thread) const {
  if (before.thread == Access::kNone) return true;
  if (before.block != block_) return false;
  if (before.thread == thread) return true;
  const unsigned theirs = before.thread / kLanes, ours = thread / kLanes;
  const uint32_t known = clocks_[ours * warps_ + theirs];
  return theirs == ours ? before.clock < known : before.clock <= known;
}

Memory::Byte* Memory::byte_at(uintptr_t address) {
  const uintptr_t page = address / kPage;
  if (page != last_page_) {
    auto& bytes = pages_[page];
    if (bytes == nullptr) bytes = std::make_unique<Byte[]>(kPage);
    last_page_ = page;
    last_bytes_ = bytes.get();
  }
  return last_bytes_ + address % kPage;
}

std::string Memory::who(const Access& access) const {
  std::ostringstream text;
  text << "thread " << access.thread;
  if (access.block != block_) text << " of block " << access.block;
  text << " at " << source_line(reinterpret_cast<const void*>(code_base() + access.line));
  return text.str();
}

std::string Memory::race(const char* space, const Access& before, bool before_writes, bool write) const {
  std::ostringstream text;
  text << "race in " << space << " memory: this " << (write ? "write" : "read") << " and the "
       << (before_writes ? "write" : "read") << " of " << who(before)
       << (before.block == block_ ? " have no barrier between them" : " are not ordered: blocks never are");
  return text.str();
}

std::string Memory::check_byte(Byte& byte, const char* space, uintptr_t, bool write, const Access& now) {
  if (!ordered(byte.write, now.thread)) return race(space, byte.write, true, write);
  if (write) {
    for (const Access& read : byte.reads) {
      if (!ordered(read, now.thread)) return race(space, read, false, true);
    }
    byte.write = now;
    byte.reads[0] = byte.reads[1] = Access{};
    return "";
  }
  const bool again = byte.reads[0].thread == now.thread && byte.reads[0].block == now.block;
  byte.reads[again || ordered(byte.reads[0], now.thread) ? 0 : 1] = now;
  return "";
}

std::string Memory::check(uintptr_t address, size_t size, bool write, unsigned thread, const void* code) {
  const bool variable = variables_.holds(address), dynamic = dynamic_.holds(address);
  const bool shared = variable || dynamic;
  if ((!dynamic && guarded_.holds(address)) || (dynamic && address + size > dynamic_.end)) {
    return std::string(write ? "write" : "read") + " beside the " + std::to_string(dynamic_.size()) +
           " bytes of dynamic shared memory";
  }
  const auto line = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(code) - code_base());
  const Access now{line, block_, clocks_[(thread / kLanes) * (warps_ + 1)], static_cast<uint16_t>(thread)};
  const uint32_t generation = shared ? block_generation_ : generation_;
  for (size_t i = 0; i < size; ++i) {
    Byte& byte = variable  ? variable_bytes_[address + i - variables_.begin]
                 : dynamic ? dynamic_bytes_[address + i - dynamic_.begin]
                           : *byte_at(address + i);
    if (byte.generation != generation) byte = Byte{generation, {}, {}};
    if (shared && !write && byte.write.thread == Access::kNone) return "read of shared memory that nothing has written";
    std::string wrong = check_byte(byte, shared ? "shared" : "global", address, write, now);
    if (!wrong.empty()) return wrong;
  }
  return "";
}

}  // namespace warpwright::emulator

// ---- what the compiler's instrumentation calls before each access ----

namespace {

// As GCC lays out its description of a dereference whose type wants an alignment.
struct Dereference {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log2_alignment, kind;
};

}  // namespace

// A dereference is checked where the source has it: optimised code may do with smaller accesses than the GPU's.
extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(Dereference* what, void* to) {
  const std::string file = what->file, bytes = std::to_string(1 << what->log2_alignment);
  warpwright::emulator::stop_thread(file.substr(file.rfind('/') + 1) + ":" + std::to_string(what->line) +
                                    ": misaligned access, " + bytes + "-byte alignment is needed and the address is " +
                                    std::to_string(reinterpret_cast<uintptr_t>(to) % (1u << what->log2_alignment)) +
                                    " bytes off");
}

#define WARPWRIGHT_HIDDEN extern "C" __attribute__((visibility("hidden")))
#define WARPWRIGHT_HOOK(NAME, SIZE, WRITE)                                              \
  WARPWRIGHT_HIDDEN void __tsan_##NAME(void* address) {                                 \
    warpwright::emulator::on_access(address, SIZE, WRITE, __builtin_return_address(0)); \
  }
#define WARPWRIGHT_HOOKS(SIZE)                       \
  WARPWRIGHT_HOOK(read##SIZE, SIZE, false)           \
  WARPWRIGHT_HOOK(write##SIZE, SIZE, true)           \
  WARPWRIGHT_HOOK(unaligned_read##SIZE, SIZE, false) \
  WARPWRIGHT_HOOK(unaligned_write##SIZE, SIZE, true)
WARPWRIGHT_HOOKS(1)
WARPWRIGHT_HOOKS(2)
WARPWRIGHT_HOOKS(4)
WARPWRIGHT_HOOKS(8)
WARPWRIGHT_HOOKS(16)
WARPWRIGHT_HIDDEN void __tsan_read_range(void* address, size_t size) {
  warpwright::emulator::on_access(address, size, false, __builtin_return_address(0));
}
WARPWRIGHT_HIDDEN void __tsan_write_range(void* address, size_t size) {
  warpwright::emulator::on_access(address, size, true, __builtin_return_address(0));
}
// The guard of a function's static variable, in the launchers.
WARPWRIGHT_HIDDEN unsigned char __tsan_atomic8_load(const volatile unsigned char* guard, int) {
  return __atomic_load_n(guard, __ATOMIC_ACQUIRE);
}
WARPWRIGHT_HIDDEN void __tsan_init() {}
WARPWRIGHT_HIDDEN void __tsan_vptr_update(void**, void*) {}
WARPWRIGHT_HIDDEN void __tsan_vptr_read(void**) {}
