// cp.async. Between its start and the wait for its group a copy may arrive at any moment: the bytes move at once or at
// the wait, as the seed has it, and whoever touches them meanwhile is stopped.

#include "emulator/machine.h"

namespace warpwright::emulator {
namespace {

void move(const Copy& copy) {
  std::memset(copy.shared, 0, static_cast<size_t>(copy.bytes));
  if (copy.source_bytes > 0) std::memcpy(copy.shared, copy.global, static_cast<size_t>(copy.source_bytes));
}

}  // namespace

void start_copy(void* shared, const void* global, int bytes, int source_bytes) {
  Machine& m = machine();
  Thread& self = *m.running;
  const void* const code = __builtin_return_address(0);
  const auto to = reinterpret_cast<uintptr_t>(shared), from = reinterpret_cast<uintptr_t>(global);
  const auto wrong = [&](const std::string& what) { stop_thread(source_line(code) + ": cp.async: " + what); };
  if (!m.memory.blocks()[self.block].holds(to)) wrong("the destination is not shared memory");
  if (to % bytes != 0 || from % bytes != 0) wrong("both addresses must be " + std::to_string(bytes) + "-byte aligned");
  if (source_bytes < 0 || source_bytes > bytes) wrong("cannot read " + std::to_string(source_bytes) + " bytes");
  if (source_bytes > 0) on_access(global, static_cast<size_t>(source_bytes), false, code);
  const std::string race = m.memory.start_copy(to, static_cast<size_t>(bytes), m.index(self), code);
  if (!race.empty()) wrong(race);
  Copies& copies = self.copies;
  const bool now = m.chance(2);
  copies.started.push_back(
      {static_cast<unsigned char*>(shared), global, bytes, source_bytes, copies.open_group, now, code});
  if (now) move(copies.started.back());
}

void commit_copies() { ++machine().running->copies.open_group; }

void wait_for_copies(int pending) {
  Machine& m = machine();
  Copies& copies = m.running->copies;
  while (!copies.started.empty() && copies.started.front().group < copies.open_group - pending) {
    const Copy& copy = copies.started.front();
    if (!copy.moved) move(copy);
    m.memory.finish_copy(reinterpret_cast<uintptr_t>(copy.shared), static_cast<size_t>(copy.bytes), m.index(*m.running),
                         copy.code);
    copies.started.pop_front();
  }
}

}  // namespace warpwright::emulator
