#include "emulator/clocks.h"

#include <algorithm>

namespace warpwright::emulator {
namespace {

History merge(const History& a, const History& b) {
  if (a == nullptr || a == b) return b;
  if (b == nullptr) return a;
  // Threads that knew the same and learn the same share the result: a warp's 32 lanes do so one after the other.
  static History last_a, last_b, last_merged;
  if (a == last_a && b == last_b) return last_merged;
  auto merged = std::make_shared<std::vector<uint32_t>>(std::max(a->size(), b->size()));
  for (size_t i = 0; i < merged->size(); ++i) {
    const auto agent = static_cast<Agent>(i);
    (*merged)[i] = std::max(at(a, agent), at(b, agent));
  }
  last_a = a, last_b = b, last_merged = merged;
  return merged;
}

History with(const History& history, Agent agent, uint32_t clock) {
  if (at(history, agent) >= clock) return history;
  static History last, last_result;
  static Agent last_agent;
  static uint32_t last_clock;
  if (last_result != nullptr && history == last && agent == last_agent && clock == last_clock) return last_result;
  auto result = history == nullptr ? std::make_shared<std::vector<uint32_t>>()
                                   : std::make_shared<std::vector<uint32_t>>(*history);
  if (result->size() <= agent) result->resize(agent + size_t{1});
  (*result)[agent] = clock;
  last = history, last_agent = agent, last_clock = clock, last_result = result;
  return result;
}

void add_once(std::vector<History>& list, const History& history) {
  if (history != nullptr && std::find(list.rbegin(), list.rend(), history) == list.rend()) list.push_back(history);
}

}  // namespace

uint32_t at(const History& history, Agent agent) {
  return history != nullptr && agent < history->size() ? (*history)[agent] : 0;
}

void Gathered::add(const Knowledge& knowledge) {
  add_once(seen_, knowledge.seen);
  add_once(fenced_, knowledge.fenced);
}

Knowledge Gathered::merged() const {
  Knowledge result;
  for (const History& fenced : fenced_) result.fenced = merge(result.fenced, fenced);
  size_t size = 0;
  for (const History& seen : seen_) size = std::max(size, seen->size());
  for (const auto& [agent, clock] : own_) size = std::max(size, agent + size_t{1});
  auto all = std::make_shared<std::vector<uint32_t>>(size);
  for (const History& seen : seen_) {
    for (size_t i = 0; i < seen->size(); ++i) (*all)[i] = std::max((*all)[i], (*seen)[i]);
  }
  for (const auto& [agent, clock] : own_) (*all)[agent] = std::max((*all)[agent], clock);
  result.seen = all;
  return result;
}

void Clocks::start(unsigned threads) {
  own_.assign(threads, 1);
  known_.assign(threads, {});
  names_.clear();
}

Agent Clocks::add_agent(const std::string& what) { return add_agents(what, 1); }

Agent Clocks::add_agents(const std::string& what, int count) {
  const auto first = static_cast<Agent>(own_.size() + names_.size());
  names_.insert(names_.end(), static_cast<size_t>(count), what);
  return first;
}

std::string Clocks::name(Agent agent) const {
  return is_thread(agent) ? "thread " + std::to_string(agent) : names_[agent - own_.size()];
}

bool Clocks::knows(Agent thread, Agent agent, uint32_t clock, bool fenced) const {
  if (!fenced && agent == thread) return true;
  const Knowledge& known = known_[thread];
  return at(fenced ? known.fenced : known.seen, agent) >= clock;
}

void Clocks::release(Agent thread, Gathered& into) {
  into.add(known_[thread]);
  into.add(thread, own_[thread]);
  ++own_[thread];  // What it does from here on is not part of what it published.
}

void Clocks::acquire(Agent thread, const Knowledge& published) {
  known_[thread].seen = merge(known_[thread].seen, published.seen);
  known_[thread].fenced = merge(known_[thread].fenced, published.fenced);
}

void Clocks::learn(Agent thread, Agent agent, uint32_t clock) {
  known_[thread].seen = with(known_[thread].seen, agent, clock);
}

void Clocks::fence(Agent thread) {
  Knowledge& known = known_[thread];
  known.fenced = with(merge(known.fenced, known.seen), thread, own_[thread]);
  ++own_[thread];
}

}  // namespace warpwright::emulator
