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

}  // namespace

uintptr_t code_base() {
  static const uintptr_t base = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&code_base), &info);
    return reinterpret_cast<uintptr_t>(info.dli_fbase);
  }();
  return base;
}

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
      const auto within = [&](const char* folder) { return line.find(folder) != std::string::npos; };
      if (line.empty() || line[0] == '?' || within("/emulator/") || within("/ptx/") || within("/c++/"))
        continue;  // Inlined into the kernel: its caller follows.
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
  for (Recent& recent : recent_) recent = Recent{};
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

Memory::Byte* Memory::bytes_at(uintptr_t address, size_t size, size_t* count) {
  for (const auto& [range, bytes] :
       {std::pair(variables_, variable_bytes_.data()), std::pair(dynamic_, dynamic_bytes_.data())}) {
    if (!range.holds(address)) continue;
    *count = std::min<size_t>(size, range.end - address);
    return bytes + (address - range.begin);
  }
  const uintptr_t page = address / kPage;
  *count = std::min<size_t>(size, kPage - address % kPage);
  Recent& recent = recent_[page % kRecent];
  if (recent.page != page) {
    auto& bytes = pages_[page];
    if (bytes == nullptr) bytes = std::make_unique<Byte[]>(kPage);
    recent = {page, bytes.get()};
  }
  return recent.bytes + address % kPage;
}

Access Memory::now(unsigned thread, const void* code) const {
  const auto line = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(code) - code_base());
  return {line, block_, clocks_[(thread / kLanes) * (warps_ + 1)], static_cast<uint16_t>(thread)};
}

inline bool Memory::ordered(const Access& before, const Access& now) const {
  if (before.thread == Access::kNone) return true;
  if (before.block != now.block) return false;
  if (before.thread == now.thread) return true;
  const unsigned theirs = before.thread / kLanes, ours = now.thread / kLanes;
  const uint32_t known = clocks_[ours * warps_ + theirs];
  return theirs == ours ? before.clock < known : before.clock <= known;
}

inline Memory::Fault Memory::note(Byte& byte, bool shared, bool write, const Access& now, Access* other) const {
  const uint32_t generation = shared ? block_generation_ : generation_;
  if (byte.generation != generation) {
    byte = Byte{};
    byte.generation = generation;
  }
  *other = byte.write;
  if (byte.in_flight) return Fault::kInFlight;
  if (shared && !write && byte.write.thread == Access::kNone) return Fault::kUnwritten;
  if (!ordered(byte.write, now)) return Fault::kWrite;
  if (!write) {
    const bool again = byte.reads[0].thread == now.thread && byte.reads[0].block == now.block;
    byte.reads[again || ordered(byte.reads[0], now) ? 0 : 1] = now;
    return Fault::kNone;
  }
  for (const Access& read : byte.reads) {
    *other = read;
    if (!ordered(read, now)) return Fault::kRead;
  }
  byte.write = now;
  byte.reads[0] = byte.reads[1] = Access{};
  return Fault::kNone;
}

std::string Memory::text_of(Fault fault, bool shared, bool write, const Access& other) const {
  const std::string ours = write ? "write" : "read", theirs = fault == Fault::kRead ? "read" : "write";
  std::string who = "thread " + std::to_string(other.thread);
  if (other.block != block_) who += " of block " + std::to_string(other.block);
  if (other.thread != Access::kNone) {
    who += " at " + source_line(reinterpret_cast<const void*>(code_base() + other.line));
  }
  if (fault == Fault::kUnwritten) return "read of shared memory that nothing has written";
  if (fault == Fault::kInFlight) {
    return ours + " of shared memory that the asynchronous copy of " + who + " may still be writing";
  }
  return std::string("race in ") + (shared ? "shared" : "global") + " memory: this " + ours + " and the " + theirs +
         " of " + who +
         (other.block == block_ ? " have no barrier between them" : " are not ordered: blocks never are");
}

std::string Memory::check(uintptr_t address, size_t size, bool write, unsigned thread, const void* code) {
  const bool dynamic = dynamic_.holds(address), shared = is_shared(address);
  if ((!dynamic && guarded_.holds(address)) || (dynamic && address + size > dynamic_.end)) {
    return std::string(write ? "write" : "read") + " beside the " + std::to_string(dynamic_.size()) +
           " bytes of dynamic shared memory";
  }
  const Access access = now(thread, code);
  while (size > 0) {
    size_t count = 0;
    Byte* const bytes = bytes_at(address, size, &count);
    for (size_t i = 0; i < count; ++i) {
      Access other;
      const Fault fault = note(bytes[i], shared, write, access, &other);
      if (fault != Fault::kNone) return text_of(fault, shared, write, other);
    }
    address += count;
    size -= count;
  }
  return "";
}

std::string Memory::start_copy(uintptr_t address, size_t size, unsigned thread, const void* code) {
  std::string wrong = check(address, size, true, thread, code);
  size_t count = 0;
  Byte* const bytes = bytes_at(address, size, &count);
  for (size_t i = 0; wrong.empty() && i < count; ++i) bytes[i].in_flight = true;
  return wrong;
}

void Memory::finish_copy(uintptr_t address, size_t size, unsigned thread, const void* code) {
  const Access access = now(thread, code);
  size_t count = 0;
  Byte* const bytes = bytes_at(address, size, &count);
  for (size_t i = 0; i < count; ++i) {
    bytes[i].in_flight = false;
    bytes[i].write = access;
  }
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
