// A row in registers. What reduces a row and then reads it again (norms, softmax, losses) holds it in between: it is
// read from memory once, in packs of 16 bytes.
//
// A team of threads takes a row: a warp, a block, or on sm_90 a cluster of blocks, by the row's width. Every thread
// holds kPacks packs, of which neighbouring threads hold neighbours. A row that is wider than the widest team can hold
// is walked in tiles, and read again in every pass.
//
// Where every row of every tensor starts at a multiple of 16 bytes and is whole packs, a pack is kPackSize<T> elements;
// elsewhere, also with gaps between elements, a pack is one element.

#pragma once

#include <type_traits>

#include "cuda/device.h"
#include "cuda/dtype.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/reduction.cuh"

namespace warpwright::cuda {

inline constexpr int kMaxTeamThreads =
    512;  // Of one block: more would leave a thread too few registers for what it holds.
inline constexpr int kMaxTeamBlocks = 8;  // What every GPU with clusters runs.
inline constexpr int kNarrowBlockThreads = 128;

// How rows are given to threads.
struct RowPlan {
  int threads;  // Of a row, in each of its blocks: a power of two, a whole number of warps.
  int cluster;  // Blocks of a row.
  int teams;    // Rows of a block; more than one only where a warp takes a row.

  // Blocks for `rows` rows; kernels walk rows in strides of the grid, so that any number fits.
  LaunchConfig config(int64_t rows, Stream stream) const {
    constexpr int64_t kMaxBlocks = 1 << 30;
    const int64_t wanted = (rows + teams - 1) / teams;
    const int64_t blocks = (wanted < kMaxBlocks ? wanted : kMaxBlocks) * cluster;
    return {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads * teams)), stream, 0, cluster};
  }
};

// The narrowest team whose threads hold `elements` each of a row of `cols`, or the widest there is. `max_cluster`: 1
// for a kernel without clusters.
inline RowPlan plan_rows(int64_t cols, int elements, int max_cluster = kMaxTeamBlocks) {
  RowPlan plan{kWarpSize, 1, 1};
  while (plan.threads < kMaxTeamThreads && int64_t{plan.threads} * elements < cols) plan.threads *= 2;
  if (current_device().capability < 90) max_cluster = 1;
  while (plan.cluster < max_cluster && int64_t{plan.threads} * plan.cluster * elements < cols) plan.cluster *= 2;
  if (plan.threads == kWarpSize) plan.teams = kNarrowBlockThreads / kWarpSize;
  return plan;
}

// Packs that a thread holds: one or kWidePacks of 16 bytes, or kSinglePacks of one element.
inline constexpr int kWidePacks = 4, kSinglePacks = 8;

// A variant of a kernel: whether a team is a warp, the elements of a pack, the packs of a thread.
template <bool kWarpTeam, int kElements, int kHeld>
struct RowVariant {
  static constexpr bool kWarp = kWarpTeam;
  static constexpr int kCount = kElements, kPacks = kHeld;
};

// Calls f(plan, variant) for rows of `cols` elements of T. `packs`: all tensors fit packs, see rows_fit_packs. kHeld:
// packs of 16 bytes that a thread holds of a wide row.
template <class T, int kHeld = kWidePacks, class F>
void visit_row_plan(int64_t cols, bool packs, const F& f, int max_cluster = kMaxTeamBlocks) {
  constexpr int kPack = kPackSize<T>;
  const int64_t pack_cols = int64_t{kWarpSize} * kPack, single_cols = int64_t{kWarpSize} * kSinglePacks;
  if (packs && cols % kPack == 0) {
    const RowPlan plan = plan_rows(cols, kHeld * kPack, max_cluster);
    if (cols <= pack_cols) return f(plan, RowVariant<true, kPack, 1>{});
    if (cols <= kHeld * pack_cols) return f(plan, RowVariant<true, kPack, kHeld>{});
    return f(plan, RowVariant<false, kPack, kHeld>{});
  }
  const RowPlan plan = plan_rows(cols, kSinglePacks, max_cluster);
  if (cols <= single_cols) return f(plan, RowVariant<true, 1, kSinglePacks>{});
  f(plan, RowVariant<false, 1, kSinglePacks>{});
}

// The threads that share a row. kWarp: each warp is a team of its own, and no barrier is needed.
template <bool kWarp>
class RowTeam {
 public:
  __device__ __forceinline__ RowTeam() {
    if constexpr (!kWarp) {
      cluster_ = static_cast<int>(ptx::cluster_size());
      // Every block of the cluster runs before another one writes to its shared memory.
      if (cluster_ > 1) ptx::cluster_sync();
    }
  }

  // The thread's place in its team, and the team's size.
  __device__ __forceinline__ int rank() const {
    if constexpr (kWarp) return static_cast<int>(threadIdx.x) % kWarpSize;
    return static_cast<int>(ptx::cluster_rank() * blockDim.x + threadIdx.x);
  }
  __device__ __forceinline__ int size() const {
    if constexpr (kWarp) return kWarpSize;
    return cluster_ * static_cast<int>(blockDim.x);
  }
  // The first row of the team, and the step to its next one.
  __device__ __forceinline__ int64_t first_row() const {
    if constexpr (kWarp) return static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarpSize) + threadIdx.x / kWarpSize;
    return blockIdx.x / cluster_;
  }
  __device__ __forceinline__ int64_t row_step() const {
    if constexpr (kWarp) return static_cast<int64_t>(gridDim.x) * (blockDim.x / kWarpSize);
    return gridDim.x / cluster_;
  }
  __device__ __forceinline__ bool leads() const { return rank() == 0; }

  // The result over the whole team, in every thread, in a fixed order. All threads of the team must call.
  template <class Op>
  __device__ __forceinline__ float reduce(float value) {
    value = warp_reduce<Op>(value);
    if constexpr (kWarp) return value;
    // Two buffers in turn: who writes one has passed the barrier after the other was written, and so has everybody who
    // read it.
    __shared__ float warps[2][kMaxTeamThreads / kWarpSize];
    __shared__ float blocks[2][kMaxTeamBlocks];
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize, count = static_cast<int>(blockDim.x) / kWarpSize;
    if (threadIdx.x % kWarpSize == 0) warps[turn_][warp] = value;
    __syncthreads();
    float total = Op::identity();
    for (int i = 0; i < count; ++i) total = Op::combine(total, warps[turn_][i]);
    if (cluster_ > 1) {
      const auto own = ptx::cluster_rank();
      if (static_cast<int>(threadIdx.x) < cluster_) *ptx::map_shared(&blocks[turn_][own], threadIdx.x) = total;
      ptx::cluster_sync();
      total = Op::identity();
      for (int i = 0; i < cluster_; ++i) total = Op::combine(total, blocks[turn_][i]);
    }
    turn_ ^= 1;
    return total;
  }

 private:
  int cluster_ = 1, turn_ = 0;
};

// One row of a tensor.
template <class T>
struct RowPointer {
  T* data;
  int64_t stride = 1;  // Between elements.
};

template <class T>
__device__ __forceinline__ RowPointer<const T> row_pointer(const Rows& rows, int64_t row) {
  return {static_cast<const T*>(rows.data) + rows.offset(row), rows.col_stride};
}

// Where a thread's packs lie in one tile of a row.
template <int kCount>
struct RowPlace {
  int64_t cols, first, step;  // Columns: of the row, of the thread's first pack, from pack to pack.

  __device__ __forceinline__ int64_t col(int pack) const { return first + pack * step; }
  __device__ __forceinline__ bool holds(int pack) const { return col(pack) < cols; }
};

// The tiles of a row of `cols` elements.
template <int kCount, int kPacks>
struct RowWalk {
  int64_t cols, span, first;  // Columns: of the row, of a tile, before the thread's first pack.
  int tiles;

  template <bool kWarp>
  __device__ __forceinline__ RowWalk(const RowTeam<kWarp>& team, int64_t cols) : cols(cols) {
    span = static_cast<int64_t>(team.size()) * kPacks * kCount;
    first = static_cast<int64_t>(team.rank()) * kCount;
    tiles = static_cast<int>((cols + span - 1) / span);
  }
  // Whether one tile is the whole row.
  __device__ __forceinline__ bool resident() const { return tiles <= 1; }
  __device__ __forceinline__ RowPlace<kCount> place(int tile) const {
    return {cols, tile * span + first, span / kPacks};
  }
};

// What one thread holds of a row.
template <class T, int kCount, int kPacks>
struct RowTile {
  static_assert(kCount == 1 || kCount == kPackSize<T>, "a pack is one element or 16 bytes");
  Pack<T, kCount> packs[kPacks];

  __device__ __forceinline__ float get(int pack, int i) const { return to_float(packs[pack].values[i]); }
  __device__ __forceinline__ void set(int pack, int i, float value) { packs[pack].values[i] = from_float<T>(value); }

  // body(pack, i) for every element.
  template <class Body>
  static __device__ __forceinline__ void for_each(const Body& body) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) body(k, i);
    }
  }

  // Packs past the end of the row are filled.
  __device__ __forceinline__ void load(const RowPointer<const T>& row, const RowPlace<kCount>& place,
                                       float fill = 0.0f) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!place.holds(k)) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) packs[k].values[i] = from_float<T>(fill);
      } else if constexpr (kCount == 1) {
        packs[k].values[0] = row.data[place.col(k) * row.stride];
      } else {
        packs[k] = *reinterpret_cast<const Pack<T, kCount>*>(row.data + place.col(k));
      }
    }
  }

  __device__ __forceinline__ void store(const RowPointer<T>& row, const RowPlace<kCount>& place) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      if (!place.holds(k)) continue;
      if constexpr (kCount == 1) {
        row.data[place.col(k) * row.stride] = packs[k].values[0];
      } else {
        store_whole(row.data + place.col(k), packs[k]);
      }
    }
  }
};

}  // namespace warpwright::cuda
