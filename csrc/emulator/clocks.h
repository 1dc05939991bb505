// What happened before what, in one cluster: vector clocks of agents. A thread is an agent; so is each thing that reads
// or writes memory beside the threads: the copies of an mbarrier, a thread's stores, a warp's products on the tensor
// cores. A release publishes what a thread knows, an acquire takes over what was published.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace warpwright::emulator {

using Agent = uint16_t;
inline constexpr Agent kNobody = 0xffff;
inline constexpr Agent kMbarrierObject = 0xfffe;  // Stands for the hardware that keeps its state there: never ordered.

// By agent, up to which of its clock's ticks; agents past the end are unknown. Never changed once it is made.
using History = std::shared_ptr<const std::vector<uint32_t>>;

uint32_t at(const History& history, Agent agent);

// Two histories: of what ordinary accesses see, and of what the async proxy sees, which is what was fenced.
struct Knowledge {
  History seen, fenced;
};

// What several threads publish, until all of them have.
class Gathered {
 public:
  void add(const Knowledge& knowledge);
  void add(Agent agent, uint32_t clock) { own_.emplace_back(agent, clock); }
  Knowledge merged() const;

 private:
  std::vector<History> seen_, fenced_;
  std::vector<std::pair<Agent, uint32_t>> own_;
};

class Clocks {
 public:
  void start(unsigned threads);
  // An agent that is no thread; `what` is how messages call it.
  Agent add_agent(const std::string& what);
  // Several that follow each other: a warpgroup's warps.
  Agent add_agents(const std::string& what, int count);
  std::string name(Agent agent) const;
  bool is_thread(Agent agent) const { return agent < own_.size(); }

  uint32_t now(Agent thread) const { return own_[thread]; }
  // Whether tick `clock` of `agent` happened before what `thread` does next, or, if `fenced`, before what the async
  // proxy does for it next.
  bool knows(Agent thread, Agent agent, uint32_t clock, bool fenced) const;

  void release(Agent thread, Gathered& into);
  void acquire(Agent thread, const Knowledge& published);
  // The thread learns that `agent` is done up to `clock`.
  void learn(Agent thread, Agent agent, uint32_t clock);
  // From now on the async proxy sees whatever the thread sees and has done.
  void fence(Agent thread);

 private:
  std::vector<uint32_t> own_;
  std::vector<Knowledge> known_;
  std::vector<std::string> names_;  // Of the agents after the threads.
};

}  // namespace warpwright::emulator
