#include "emulator/memory.h"

#include <algorithm>
#include <sstream>

namespace warpwright::emulator {
namespace {

constexpr size_t kMostPages = 4096;  // Some 200 MiB of bytes' histories; then they are dropped between launches.

}  // namespace

void Memory::start_launch() {
  ++generation_;
  if (pages_.size() > kMostPages) pages_.clear();
  for (Recent& recent : recent_) recent = Recent{};
}

void Memory::start_cluster(uint32_t cluster, unsigned threads, std::vector<SharedMemory> blocks) {
  ++cluster_generation_;
  cluster_ = cluster;
  block_threads_ = threads;
  blocks_ = std::move(blocks);
  clocks_.start(static_cast<unsigned>(blocks_.size()) * threads);
  shared_bytes_.resize(std::max(shared_bytes_.size(), 2 * blocks_.size()));
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const size_t sizes[2] = {blocks_[i].variables.size(), blocks_[i].dynamic.size()};
    for (size_t part = 0; part < 2; ++part) {
      auto& bytes = shared_bytes_[2 * i + part];
      if (bytes.size() < sizes[part]) bytes.resize(sizes[part]);
    }
  }
}

int Memory::block_of(uintptr_t address) const {
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (blocks_[i].holds(address)) return static_cast<int>(i);
  }
  return -1;
}

Memory::Byte* Memory::bytes_at(uintptr_t address, size_t size, size_t* count) {
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Range parts[2] = {blocks_[i].variables, blocks_[i].dynamic};
    for (size_t part = 0; part < 2; ++part) {
      if (!parts[part].holds(address)) continue;
      *count = std::min<size_t>(size, parts[part].end - address);
      return shared_bytes_[2 * i + part].data() + (address - parts[part].begin);
    }
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

Access Memory::access(const Actor& actor, const void* code) const {
  const auto line = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(code) - code_base());
  return {line, cluster_, actor.clock, actor.agent, actor.agents, actor.async, actor.atomic};
}

inline bool Memory::ordered(const Access& before, const Actor& actor, bool fenced) const {
  if (before.agent == kNobody) return true;
  if (before.agent == kMbarrierObject || before.cluster != cluster_) return false;
  for (unsigned i = 0; i < before.agents; ++i) {
    if (!clocks_.knows(actor.thread, static_cast<Agent>(before.agent + i), before.clock, fenced)) return false;
  }
  return true;
}

inline Memory::Fault Memory::note(Byte& byte, bool shared, bool write, const Actor& actor, const Access& now,
                                  Access* other) const {
  const uint32_t generation = shared ? cluster_generation_ : generation_;
  if (byte.generation != generation) {
    byte = Byte{};
    byte.generation = generation;
  }
  *other = byte.write;
  if (byte.in_flight) return Fault::kInFlight;
  if (shared && !write && byte.write.agent == kNobody) return Fault::kUnwritten;
  const bool both_atomic = byte.write.atomic && now.atomic;
  if (!both_atomic && !ordered(byte.write, actor, false)) return Fault::kWrite;
  // What threads wrote is seen by the async proxy after a fence only; the other way round waiting is enough.
  if (actor.async && shared && byte.write.agent != kNobody && !byte.write.async && !ordered(byte.write, actor, true)) {
    return Fault::kUnfenced;
  }
  if (!write) {
    if (actor.unnoted) return Fault::kNone;
    const bool again = byte.reads[0].agent == now.agent && byte.reads[0].cluster == now.cluster;
    byte.reads[again || ordered(byte.reads[0], actor, false) ? 0 : 1] = now;
    return Fault::kNone;
  }
  for (const Access& read : byte.reads) {
    *other = read;
    if (!(read.atomic && now.atomic) && !ordered(read, actor, false)) return Fault::kRead;
  }
  byte.write = now;
  byte.reads[0] = byte.reads[1] = Access{};
  return Fault::kNone;
}

std::string Memory::text_of(Fault fault, bool shared, bool write, const Actor& actor, const Access& other) const {
  if (fault == Fault::kUnwritten) return "read of shared memory that nothing has written";
  const std::string ours = write ? "write" : "read", theirs = fault == Fault::kRead ? "read" : "write";
  const bool thread = other.cluster != cluster_ || clocks_.is_thread(other.agent);
  std::ostringstream who;
  if (other.agent == kMbarrierObject) {
    who << "an mbarrier object, initialised";
  } else if (thread) {
    who << "thread " << other.agent % block_threads_;
    const auto blocks = static_cast<unsigned>(blocks_.size());
    const unsigned block = other.cluster * blocks + other.agent / block_threads_;
    if (other.cluster != cluster_ || other.agent / block_threads_ != actor.thread / block_threads_) {
      who << " of block " << block;
    }
  } else {
    who << "the " << clocks_.name(other.agent);
  }
  who << " at " << source_line(reinterpret_cast<const void*>(code_base() + other.line));
  if (fault == Fault::kInFlight) {
    return ours + " of shared memory that the asynchronous copy of " + who.str() + " may still be writing";
  }
  const std::string memory = shared ? "shared memory" : "global memory";
  if (other.agent == kMbarrierObject) return ours + " of shared memory that is " + who.str();
  if (fault == Fault::kUnfenced) {
    return "the async proxy's " + ours + " of shared memory does not see the write of " + who.str() +
           ": no fence.proxy.async between them";
  }
  if (!thread) {
    return ours + " of " + memory + " that " + who.str() + " may still be " +
           (fault == Fault::kRead ? "reading" : "writing");
  }
  return "race in " + memory + ": this " + ours + " and the " + theirs + " of " + who.str() +
         (other.cluster == cluster_ ? " have no barrier between them" : " are not ordered: blocks never are");
}

std::string Memory::check(uintptr_t address, size_t size, bool write, const Actor& actor, const void* code) {
  const int block = block_of(address);
  const bool shared = block >= 0;
  for (const SharedMemory& memory : blocks_) {
    const bool dynamic = memory.dynamic.holds(address);
    if ((!dynamic && memory.guarded.holds(address)) || (dynamic && !memory.dynamic.holds(address, size))) {
      return std::string(write ? "write" : "read") + " beside the " + std::to_string(memory.dynamic.size()) +
             " bytes of dynamic shared memory";
    }
  }
  const Access now = access(actor, code);
  while (size > 0) {
    size_t count = 0;
    Byte* const bytes = bytes_at(address, size, &count);
    for (size_t i = 0; i < count; ++i) {
      Access other;
      const Fault fault = note(bytes[i], shared, write, actor, now, &other);
      if (fault != Fault::kNone) return text_of(fault, shared, write, actor, other);
    }
    address += count;
    size -= count;
  }
  return "";
}

std::string Memory::start_copy(uintptr_t address, size_t size, Agent thread, const void* code) {
  std::string wrong = check(address, size, true, this->thread(thread), code);
  size_t count = 0;
  Byte* const bytes = bytes_at(address, size, &count);
  for (size_t i = 0; wrong.empty() && i < count; ++i) bytes[i].in_flight = true;
  return wrong;
}

void Memory::finish_copy(uintptr_t address, size_t size, Agent thread, const void* code) {
  const Access now = access(this->thread(thread), code);
  size_t count = 0;
  Byte* const bytes = bytes_at(address, size, &count);
  for (size_t i = 0; i < count; ++i) {
    bytes[i].in_flight = false;
    bytes[i].write = now;
  }
}

void Memory::mark_mbarrier(uintptr_t address, size_t size, bool object, const Actor& actor, const void* code) {
  Access now = access(actor, code);
  if (object) now.agent = kMbarrierObject;
  size_t count = 0;
  Byte* const bytes = bytes_at(address, size, &count);
  for (size_t i = 0; i < count; ++i) {
    bytes[i].generation = cluster_generation_;
    bytes[i].write = now;
    bytes[i].reads[0] = bytes[i].reads[1] = Access{};
  }
}

}  // namespace warpwright::emulator
