// TMA. A load's bytes may come at any moment from its start on; until its mbarrier has been waited for, whoever touches
// them is stopped, and finds NaNs there before. A store may read at any moment until it has been waited for, and write
// until the end of the kernel.

#include "emulator/machine.h"

namespace warpwright::emulator {
namespace {

constexpr size_t kChunk = 16;
constexpr unsigned char kPoison = 0xff;

void check_box(const Machine& m, const void* shared, const Boxes& boxes, unsigned block) {
  const auto at = reinterpret_cast<uintptr_t>(shared);
  const SharedMemory& memory = m.memory.blocks()[block];
  const size_t bytes = boxes.pieces.size() * kChunk;
  if (!memory.dynamic.holds(at, bytes) && !memory.variables.holds(at, bytes)) {
    stop("TMA: the box of " + std::to_string(bytes) + " bytes is not inside the block's shared memory");
  }
  if (at % static_cast<uintptr_t>(boxes.alignment) != 0) {
    stop("TMA: the box must be " + std::to_string(boxes.alignment) + "-byte aligned in shared memory and is " +
         std::to_string(at % static_cast<uintptr_t>(boxes.alignment)) + " bytes off");
  }
}

// Checks what the pieces touch in global memory.
void check_global(Machine& m, const Boxes& boxes, bool write, const Actor& actor, const void* code) {
  for (const Piece& piece : boxes.pieces) {
    if (piece.first == piece.last) continue;
    const std::string wrong = check_access(m, reinterpret_cast<uintptr_t>(piece.global + piece.first),
                                           static_cast<size_t>(piece.last - piece.first), write, actor, code);
    if (!wrong.empty()) stop("TMA: " + wrong);
  }
}

// Rounds the float32 numbers of a chunk to TF32, to the nearest even one; infinities and NaN stay.
void round_to_tf32(unsigned char* chunk) {
  for (size_t at = 0; at < kChunk; at += sizeof(uint32_t)) {
    uint32_t bits;
    std::memcpy(&bits, chunk + at, sizeof(bits));
    const bool finite = (bits & 0x7f800000) != 0x7f800000;
    if (finite) bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
    std::memcpy(chunk + at, &bits, sizeof(bits));
  }
}

void load_to(Machine& m, unsigned char* shared, uintptr_t mbarrier, const Boxes& boxes, const void* code) {
  const Agent self = m.index(*m.running);
  MbarrierState& object = usable_mbarrier(m, reinterpret_cast<const void*>(mbarrier), self, true);
  if (m.blocks[object.block].running == 0) stop("TMA: into the shared memory of a block that has ended");
  const uint32_t phase = object.phase;
  const size_t bytes = boxes.pieces.size() * kChunk;
  const Actor actor{self, object.engine, phase + 1, 1, true, false, false};
  const std::string wrong = check_access(m, reinterpret_cast<uintptr_t>(shared), bytes, true, actor, code);
  if (!wrong.empty()) stop("TMA: " + wrong);
  std::memset(shared, kPoison, bytes);
  object.in_flight += static_cast<int64_t>(bytes);
  const auto happen = [&m, shared, mbarrier, boxes, bytes, phase, self, code] {
    for (const Piece& piece : boxes.pieces) {
      unsigned char* const to = shared + piece.offset;
      std::memset(to, 0, kChunk);
      if (piece.first < piece.last) {
        std::memcpy(to + piece.first, piece.global + piece.first, static_cast<size_t>(piece.last - piece.first));
      }
      if (boxes.to_tf32) round_to_tf32(to);
    }
    complete_bytes(m, mbarrier, static_cast<int64_t>(bytes), phase, self, code);
  };
  if (m.chance(4)) {
    happen();
  } else {
    m.pending.push_back({self, code, happen});
  }
}

void read_store(TensorStore& store) {
  if (store.has_read) return;
  store.held.resize(store.pieces.size() * kChunk);
  for (size_t i = 0; i < store.pieces.size(); ++i) {
    std::memcpy(store.held.data() + i * kChunk, store.shared + store.pieces[i].offset, kChunk);
  }
  store.has_read = true;
}

void write_store(TensorStore& store) {
  if (store.written) return;
  read_store(store);
  for (size_t i = 0; i < store.pieces.size(); ++i) {
    const Piece& piece = store.pieces[i];
    const unsigned char* const from = store.held.data() + i * kChunk + piece.first;
    const int bytes = piece.last - piece.first;
    if (bytes > 0 && store.add) store.add(piece.global + piece.first, from, bytes);
    if (bytes > 0 && !store.add) std::memcpy(piece.global + piece.first, from, static_cast<size_t>(bytes));
  }
  store.written = true;
}

}  // namespace

void Boxes::add(const Piece& piece) { pieces.push_back(piece); }

void tensor_load(void* shared, void* mbarrier, const Boxes& boxes, unsigned blocks) {
  Machine& m = machine();
  Thread& self = *m.running;
  const void* const code = __builtin_return_address(0);
  check_box(m, shared, boxes, self.block);
  const MbarrierState& own = usable_mbarrier(m, mbarrier, m.index(self), true);
  Actor reader{m.index(self), own.engine, own.phase + 1, 1, true, false, false};
  check_global(m, boxes, false, reader, code);
  if (blocks == 0) {
    return load_to(m, static_cast<unsigned char*>(shared), reinterpret_cast<uintptr_t>(mbarrier), boxes, code);
  }
  if (blocks >> m.blocks.size() != 0) stop("TMA: multicast to a block that the cluster does not have");
  for (unsigned rank = 0; rank < m.blocks.size(); ++rank) {
    if ((blocks >> rank & 1) == 0) continue;
    load_to(m, static_cast<unsigned char*>(map_shared(shared, rank)),
            reinterpret_cast<uintptr_t>(map_shared(mbarrier, rank)), boxes, code);
  }
}

void tensor_store(const void* shared, const Boxes& boxes, const AddFunction& add) {
  Machine& m = machine();
  Thread& self = *m.running;
  const void* const code = __builtin_return_address(0);
  TensorStores& stores = self.stores;
  if (boxes.to_tf32) stop("TMA: a map that rounds to TF32 is for loads");
  check_box(m, shared, boxes, self.block);
  if (stores.reader == kNobody) {
    stores.reader = m.clocks().add_agent("TMA store");
    stores.writer = m.clocks().add_agent("TMA store");
  }
  const auto clock = static_cast<uint32_t>(stores.open_group + 1);
  const Actor reader{m.index(self), stores.reader, clock, 1, true, false, false};
  const std::string wrong =
      check_access(m, reinterpret_cast<uintptr_t>(shared), boxes.pieces.size() * kChunk, false, reader, code);
  if (!wrong.empty()) stop("TMA: " + wrong);
  const Actor writer{m.index(self), stores.writer, clock, 1, true, static_cast<bool>(add), false};
  check_global(m, boxes, true, writer, code);
  stores.started.push_back(
      {static_cast<const unsigned char*>(shared), boxes.pieces, add, {}, false, false, stores.open_group, code});
  if (m.chance(3)) read_store(stores.started.back());
  if (m.chance(3)) write_store(stores.started.back());
}

void commit_stores() { ++machine().running->stores.open_group; }

void wait_for_stores(int pending, bool reads) {
  Machine& m = machine();
  Thread& self = *m.running;
  TensorStores& stores = self.stores;
  if (stores.reader == kNobody) return;
  const int64_t done = stores.open_group - pending;
  for (TensorStore& store : stores.started) {
    if (store.group >= done) continue;
    read_store(store);
    if (!reads) write_store(store);
  }
  if (done <= 0) return;
  m.clocks().learn(m.index(self), stores.reader, static_cast<uint32_t>(done));
  if (!reads) m.clocks().learn(m.index(self), stores.writer, static_cast<uint32_t>(done));
}

void finish_stores(Machine& m, Thread& t) {
  for (TensorStore& store : t.stores.started) {
    const bool waited = m.clocks().knows(m.index(t), t.stores.reader, static_cast<uint32_t>(store.group + 1), false);
    if (!waited) {
      stop_thread(source_line(store.code) +
                  ": TMA: the thread ends before this store is known to have read shared memory");
    }
    if (store.written) continue;
    m.pending.push_back({m.index(t), store.code, [store]() mutable { write_store(store); }});
  }
  t.stores.started.clear();
}

}  // namespace warpwright::emulator
