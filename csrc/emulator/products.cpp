// wgmma. A warpgroup's products run in the order in which they were started, at any moment from when all four warps
// have started them on, at the latest when one of them waits. Meanwhile their registers hold NaN, and a thread that
// touches them is stopped; shared memory counts as read until every warp has waited.

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>

#include "emulator/machine.h"

namespace warpwright::emulator {
namespace {

constexpr int kM = 64;

Warpgroup& warpgroup_of(Machine& m, const Thread& t) {
  const size_t groups = (m.block_threads + kWarpgroupSize - 1) / kWarpgroupSize;
  return m.warpgroups[t.block * groups + m.index(t) % m.block_threads / kWarpgroupSize];
}

// The columns of A that are stored.
int a_depth(const Product& product) { return product.kind.sparse ? product.kind.k / 2 : product.kind.k; }

// Which k the stored column `at` of a row of A is: 9.7.15.6.2.1, Figure 176, where A is sparse.
int column_of(const Product& product, int row, int at) {
  if (!product.kind.sparse) return at;
  const int thread = row / 16 * kWarpSize + row % 8 * 4 + 2 * product.kind.selector + at / 8;
  return at / 2 * 4 + static_cast<int>(product.metadata[thread] >> (row % 16 / 8 * 16 + at % 8 * 2) & 3);
}

// The element's place in the host's memory; null where the descriptor leads outside.
const unsigned char* element_at(Machine& m, unsigned block, const Product& product, bool a, int row, int k) {
  const bool along_k = a ? product.kind.a_along_k : product.kind.b_along_k;
  const uint32_t offset = product.kind.element(a ? product.a : product.b, along_k, row, k);
  const Range& dynamic = m.memory.blocks()[block].dynamic;
  const uintptr_t address = dynamic.begin + offset - kSharedWindow;
  return offset >= kSharedWindow && dynamic.holds(address, static_cast<size_t>(product.kind.bytes))
             ? reinterpret_cast<const unsigned char*>(address)
             : nullptr;
}

// A warp reads its 16 rows of A and all of B. B is noted once, for all four warps; each checks that it may.
void check_reads(Machine& m, const Thread& t, const Warpgroup& group, const Product& product, int64_t number,
                 int warp) {
  Actor actor{m.index(t), group.agents, static_cast<uint32_t>(number + 1), 4, true, false, false};
  const auto check = [&](bool a, int row, int k) {
    const unsigned char* at = element_at(m, t.block, product, a, row, k);
    if (at == nullptr) stop(std::string("wgmma: the descriptor of ") + (a ? "A" : "B") + " leads out of shared memory");
    const std::string wrong = check_access(m, reinterpret_cast<uintptr_t>(at), static_cast<size_t>(product.kind.bytes),
                                           false, actor, product.code);
    if (!wrong.empty()) stop(std::string("wgmma: ") + (a ? "A: " : "B: ") + wrong);
  };
  for (int row = 16 * warp; !product.a_in_registers && row < 16 * warp + 16; ++row) {
    for (int k = 0; k < a_depth(product); ++k) check(true, row, k);
  }
  actor.unnoted = std::count(product.lanes, product.lanes + 4, kWarpSize) > 1;
  // 16 bytes lie together one way or the other: one element stands for them.
  const int step = actor.unnoted ? 16 / product.kind.bytes : 1;
  for (int row = 0; row < product.kind.n; row += product.kind.b_along_k ? 1 : step) {
    for (int k = 0; k < product.kind.k; k += product.kind.b_along_k ? step : 1) check(false, row, k);
  }
}

uint32_t bits_at(const Product& product, const unsigned char* at) {
  uint32_t bits = 0;
  std::memcpy(&bits, at, static_cast<size_t>(product.kind.bytes));
  return bits;
}

uint32_t* held_at(Machine& m, Agent thread, const void* registers) {
  for (HeldRegisters& held : m.threads[thread].products.held) {
    if (held.at == registers) return held.words.data();
  }
  throw std::logic_error("warpwright emulator: registers of a product are gone");
}

// The bits of a sum after the product.
template <class Sum>
uint32_t added(uint32_t before, bool accumulate, float products) {
  return std::bit_cast<uint32_t>(add_products(accumulate ? std::bit_cast<Sum>(before) : Sum{}, products));
}

// Row and column of register i of a thread of the warpgroup: PTX ISA 9.7.15.5.1.1.1.
int fragment_row(int thread, int i) { return thread / kWarpSize * 16 + thread % kWarpSize / 4 + i / 2 % 2 * 8; }
int fragment_col(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

// The bits of an element of A that lies in registers.
uint32_t fragment_bits(const Product& product, int row, int k) {
  const int together = 4 / product.kind.bytes, half = k / together / 4;
  const int thread = row / 16 * kWarpSize + row % 8 * 4 + k / together % 4;
  return product.a_registers[thread][row % 16 / 8 + 2 * half] >> (8 * product.kind.bytes * (k % together));
}

void multiply(Machine& m, Agent first_thread, Product& product) {
  const int n = product.kind.n, depth = product.kind.k, stored = a_depth(product);
  const unsigned block = m.threads[first_thread].block;
  std::vector<float> a(static_cast<size_t>(kM * stored)), b(static_cast<size_t>(depth * n)),
      d(static_cast<size_t>(kM * n));
  for (int row = 0; row < kM; ++row) {
    for (int k = 0; k < stored; ++k) {
      const uint32_t bits = product.a_in_registers ? fragment_bits(product, row, k)
                                                   : bits_at(product, element_at(m, block, product, true, row, k));
      a[static_cast<size_t>(row * stored + k)] = product.kind.a_value(bits);
    }
  }
  for (int k = 0; k < depth; ++k) {
    for (int col = 0; col < n; ++col) {
      const uint32_t bits = bits_at(product, element_at(m, block, product, false, col, k));
      b[static_cast<size_t>(k * n + col)] = product.kind.b_value(bits);
    }
  }
  for (int row = 0; row < kM; ++row) {
    float* const sums = d.data() + row * n;
    for (int k = 0; k < stored; ++k) {
      const float factor = a[static_cast<size_t>(row * stored + k)];
      const float* const other = b.data() + column_of(product, row, k) * n;
      for (int col = 0; col < n; ++col) sums[col] += factor * other[col];
    }
  }
  for (int thread = 0; thread < kWarpgroupSize; ++thread) {
    uint32_t* const to = held_at(m, static_cast<Agent>(first_thread + thread), product.d[thread]);
    for (int i = 0; i < n / 2; ++i) {
      const float sum = d[static_cast<size_t>(fragment_row(thread, i) * n + fragment_col(thread, i))];
      to[i] = product.kind.integers ? added<int32_t>(to[i], product.accumulate, sum)
                                    : added<float>(to[i], product.accumulate, sum);
    }
  }
  product.done = true;
}

// Runs what has been started by all, up to product `last` (excluded).
void run_products(Machine& m, const Thread& t, Warpgroup& group, int64_t last) {
  const Agent first_thread = static_cast<Agent>(m.index(t) / kWarpgroupSize * kWarpgroupSize);
  for (int64_t i = group.first; i < last; ++i) {
    Product& product = group.products[static_cast<size_t>(i - group.first)];
    if (!product.done) multiply(m, first_thread, product);
  }
  // Those that nobody will ask for again are forgotten.
  int64_t needed = last;
  for (int i = 0; i < kWarpgroupSize; ++i) {
    for (const HeldRegisters& held : m.threads[static_cast<size_t>(first_thread + i)].products.held) {
      needed = std::min(needed, held.last_product);
    }
  }
  while (group.first < needed && !group.products.empty() && group.products.front().done) {
    group.products.pop_front();
    ++group.first;
  }
}

}  // namespace

std::string check_registers(Thread& t, uintptr_t address, size_t size, bool write) {
  const Range accessed{address, address + size};
  const auto overlaps = [&](uintptr_t at, size_t bytes) { return at < accessed.end && accessed.begin < at + bytes; };
  for (const HeldRegisters& held : t.products.held) {
    if (overlaps(reinterpret_cast<uintptr_t>(held.at), held.words.size() * sizeof(uint32_t))) {
      return std::string(write ? "write" : "read") + " of a register that a wgmma may still be writing";
    }
  }
  for (const auto& [registers, product] : t.products.operands) {
    if (write && overlaps(registers.begin, registers.size())) {
      return "write of a register that a wgmma may still be reading";
    }
  }
  for (const Range& range : t.products.touched) {
    if (overlaps(range.begin, range.size())) t.products.fenced = false;
  }
  return "";
}

void check_metadata(uint32_t metadata, int selector) {
  if (lane_id() % 4 / 2 != selector) return;
  for (int chunk = 0; chunk < 8; ++chunk) {
    const uint32_t first = metadata >> 4 * chunk & 3, second = metadata >> (4 * chunk + 2) & 3;
    if (first >= second) stop("the metadata of four elements of a sparse matrix must name two of them in their order");
  }
}

void fence_products() { machine().running->products.fenced = true; }

void start_product(const WarpgroupProduct& kind, void* d, uint64_t a, const uint32_t* a_registers, uint64_t b,
                   bool accumulate, const uint32_t* metadata) {
  Machine& m = machine();
  Thread& self = *m.running;
  const size_t in_block = m.index(self) % m.block_threads, lane = in_block % kWarpgroupSize, warp = lane / kWarpSize;
  if (m.block_threads % kWarpgroupSize != 0) stop("wgmma: the block does not consist of whole warpgroups");
  if (!self.products.fenced) stop("wgmma: no wgmma.fence since its registers were touched last");
  Warpgroup& group = warpgroup_of(m, self);
  if (group.agents == kNobody) group.agents = m.clocks().add_agents("wgmma", 4);
  const int64_t number = self.products.started++;
  while (group.first + static_cast<int64_t>(group.products.size()) <= number) {
    Product fresh{};
    fresh.kind = kind;
    fresh.a = a, fresh.b = b;
    fresh.a_in_registers = a_registers != nullptr, fresh.accumulate = accumulate;
    fresh.code = __builtin_return_address(0);
    group.products.push_back(fresh);
  }
  Product& product = group.products[static_cast<size_t>(number - group.first)];
  if (product.kind != kind || product.a != a || product.b != b || product.accumulate != accumulate ||
      product.a_in_registers != (a_registers != nullptr)) {
    stop("wgmma: differs from what other threads of the warpgroup have started: all must execute the same");
  }
  product.d[lane] = d;
  const auto read = [&](const uint32_t* registers, int words, uint32_t* to) {
    std::copy_n(registers, words, to);
    const auto at = reinterpret_cast<uintptr_t>(registers);
    self.products.operands.push_back({{at, at + static_cast<size_t>(words) * sizeof(uint32_t)}, number});
  };
  if (a_registers != nullptr) read(a_registers, 4, product.a_registers[lane]);
  if (kind.sparse) {
    check_metadata(*metadata, kind.selector);
    read(metadata, 1, &product.metadata[lane]);
  }
  const auto count = static_cast<size_t>(kind.n / 2);
  auto& held = self.products.held;
  const auto known = std::find_if(held.begin(), held.end(), [&](const HeldRegisters& h) { return h.at == d; });
  if (known != held.end()) {
    if (known->words.size() != count)
      stop("wgmma: another shape on the same registers before the last one was waited for");
    known->last_product = number;
  } else {
    held.push_back({d, std::vector<uint32_t>(count), number});
    std::memcpy(held.back().words.data(), d, count * sizeof(uint32_t));
    std::fill_n(static_cast<float*>(d), count, std::nanf(""));
  }
  if (++product.lanes[warp] == kWarpSize) check_reads(m, self, group, product, number, static_cast<int>(warp));
  if (++product.joined == kWarpgroupSize) {
    for (const size_t first = m.index(self) - lane; Thread& t : std::span(m.threads).subspan(first, kWarpgroupSize)) {
      if (t.state == State::kProducts) t.state = State::kReady;
    }
    if (m.chance(3)) run_products(m, self, group, number + 1);
  }
}

void commit_products() {
  Products& products = machine().running->products;
  products.groups.push_back(products.started);
}

void wait_for_products(int pending) {
  Machine& m = machine();
  Thread& self = *m.running;
  Products& products = self.products;
  const auto commits = static_cast<int64_t>(products.groups.size());
  if (commits <= pending) return;
  const int64_t done = products.groups[static_cast<size_t>(commits - pending - 1)];
  Warpgroup& group = warpgroup_of(m, self);
  const auto all_joined = [&] {
    return std::all_of(group.products.begin(), group.products.end(), [&, i = group.first](const Product& p) mutable {
      return i++ >= done || p.joined == kWarpgroupSize;
    });
  };
  while (!all_joined()) wait(self, State::kProducts);
  run_products(m, self, group, done);
  for (auto held = products.held.begin(); held != products.held.end();) {
    if (held->last_product >= done) {
      ++held;
      continue;
    }
    const size_t bytes = held->words.size() * sizeof(uint32_t);
    std::memcpy(held->at, held->words.data(), bytes);
    const auto at = reinterpret_cast<uintptr_t>(held->at);
    products.touched.push_back({at, at + bytes});
    held = products.held.erase(held);
    products.fenced = false;  // They are the thread's again: it may have touched them.
  }
  std::erase_if(products.operands, [&](const auto& operand) { return operand.second < done; });
  if (products.touched.size() > 8) products.touched.erase(products.touched.begin());
  if (done > 0) {
    const auto warp = static_cast<Agent>(m.index(self) % kWarpgroupSize / kWarpSize);
    m.clocks().learn(m.index(self), static_cast<Agent>(group.agents + warp), static_cast<uint32_t>(done));
  }
}

}  // namespace warpwright::emulator
