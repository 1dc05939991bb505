// mbarrier objects: PTX ISA 9.7.13.15.

#include "emulator/machine.h"

namespace warpwright::emulator {
namespace {

constexpr unsigned kMostArrivals = (1u << 20) - 1;
constexpr int64_t kMostBytes = (1 << 20) - 1;

std::string line_of(const Access& access) {
  return source_line(reinterpret_cast<const void*>(code_base() + access.line));
}

// Begins the next phase if this one has all it waits for.
void complete(Machine& m, uintptr_t address, MbarrierState& object, Agent thread) {
  if (object.pending > 0 || object.bytes != 0) return;
  if (object.in_flight > 0) {
    return stop_for(m, thread,
                    "a phase of the mbarrier initialised at " + line_of(object.init) + " ends while " +
                        std::to_string(object.in_flight) +
                        " bytes are on their way to it: expect_tx announced too few");
  }
  Knowledge published = object.gathered.merged();
  Gathered copies;
  copies.add(published);
  copies.add(object.engine, object.phase + 1);
  object.published_by_phase = copies.merged();
  object.published_by_phase.fenced = published.fenced;
  object.gathered = {};
  object.pending = object.expected;
  ++object.phase;
  for (Thread& t : m.threads) {
    if (t.state == State::kMbarrier && t.mbarrier == address) t.state = State::kReady;
  }
}

}  // namespace

MbarrierState& usable_mbarrier(Machine& m, const void* address, Agent thread, bool remote) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto found = m.mbarriers.find(at);
  if (found == m.mbarriers.end()) stop("mbarrier: not an initialised object");
  MbarrierState& object = found->second;
  const bool known = m.clocks().knows(thread, object.owner, object.init.clock, false);
  if (!known) stop("mbarrier: no barrier between its initialisation at " + line_of(object.init) + " and this use");
  if (remote && !object.published && !m.clocks().knows(thread, object.owner, object.init.clock, true)) {
    stop("mbarrier: no fence.mbarrier_init between its initialisation at " + line_of(object.init) +
         " and its use by TMA or another block");
  }
  if (m.blocks[object.block].running == 0) stop("mbarrier: of a block that has ended");
  return object;
}

std::string describe_mbarrier(const MbarrierState& object) {
  const std::string text = "at the mbarrier initialised at " + line_of(object.init) + ", which waits for " +
                           std::to_string(object.pending) + " arrivals and ";
  if (object.bytes >= 0) return text + std::to_string(object.bytes) + " bytes";
  return text + "has got " + std::to_string(-object.bytes) + " bytes that nobody announced";
}

void mbarrier_init(void* address, unsigned arrivals) {
  Machine& m = machine();
  Thread& self = *m.running;
  const void* const code = __builtin_return_address(0);
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (!m.memory.blocks()[self.block].holds(at) || at % 8 != 0) {
    stop("mbarrier: an object is 8 bytes of the block's shared memory, 8-byte aligned");
  }
  if (arrivals < 1 || arrivals > kMostArrivals) stop("mbarrier: 1 to 2^20 - 1 arrivals are possible");
  const Actor actor = m.memory.thread(m.index(self));
  if (m.mbarriers.count(at) != 0) stop("mbarrier: initialised again without mbarrier.inval");
  const std::string wrong = check_access(m, at, 8, true, actor, code);
  if (!wrong.empty()) stop(wrong);
  MbarrierState object{};
  object.block = self.block;
  object.init = m.memory.access(actor, code);
  object.owner = m.index(self);
  object.engine = m.clocks().add_agent("TMA load");
  object.expected = arrivals;
  object.pending = arrivals;
  m.mbarriers[at] = object;
  m.memory.mark_mbarrier(at, 8, true, actor, code);
}

void mbarrier_invalidate(void* address) {
  Machine& m = machine();
  const Agent self = m.index(*m.running);
  const MbarrierState& object = usable_mbarrier(m, address, self, false);
  if (object.in_flight > 0) stop("mbarrier: invalidated while bytes are on their way to it");
  m.mbarriers.erase(reinterpret_cast<uintptr_t>(address));
  m.memory.mark_mbarrier(reinterpret_cast<uintptr_t>(address), 8, false, m.memory.thread(self),
                         __builtin_return_address(0));
}

void fence_mbarrier_init() {
  Machine& m = machine();
  const Agent self = m.index(*m.running);
  for (auto& [address, object] : m.mbarriers) object.published |= object.owner == self;
}

void mbarrier_arrive(void* address, unsigned arrivals, unsigned bytes) {
  Machine& m = machine();
  Thread& self = *m.running;
  const auto at = reinterpret_cast<uintptr_t>(address);
  const bool remote = m.memory.block_of(at) != static_cast<int>(self.block);
  MbarrierState& object = usable_mbarrier(m, address, m.index(self), remote);
  if (object.pending < arrivals) {
    stop("mbarrier: more arrivals in a phase than the " + std::to_string(object.expected) +
         " it was initialised with at " + line_of(object.init));
  }
  object.bytes += bytes;
  if (object.bytes > kMostBytes) stop("mbarrier: more than 2^20 - 1 bytes in a phase");
  if (arrivals > 0) m.clocks().release(m.index(self), object.gathered);
  object.pending -= arrivals;
  complete(m, at, object, m.index(self));
}

void complete_bytes(Machine& m, uintptr_t address, int64_t bytes, uint32_t phase, Agent thread, const void* code) {
  const auto found = m.mbarriers.find(address);
  if (found == m.mbarriers.end() || found->second.phase != phase) {
    return stop_for(m, thread, source_line(code) + ": TMA: its mbarrier has begun another phase, or is no more");
  }
  found->second.bytes -= bytes;
  found->second.in_flight -= bytes;
  complete(m, address, found->second, thread);
}

bool mbarrier_wait(void* address, unsigned parity, bool blocks) {
  Machine& m = machine();
  Thread& self = *m.running;
  const auto at = reinterpret_cast<uintptr_t>(address);
  const int block = m.memory.block_of(at);
  if (block >= 0 && block != static_cast<int>(self.block)) stop("mbarrier: waits at another block's object");
  for (;;) {
    MbarrierState& object = usable_mbarrier(m, address, m.index(self), false);
    if ((object.phase & 1) != (parity & 1)) {
      m.clocks().acquire(m.index(self), object.published_by_phase);
      return true;
    }
    if (!blocks) {
      ++m.fruitless_looks;
      wait(self, State::kReady);  // A loop around this must let the others run.
      return false;
    }
    self.mbarrier = at;
    wait(self, State::kMbarrier);
  }
}

}  // namespace warpwright::emulator
