// Which rows belong to which group: found on the device, from the groups' ends alone. Whole warps ask, and all lanes of
// a warp get the same answer.

#pragma once

#include "cuda/tile/reduction.cuh"
#include "kernels/grouped.h"

namespace warpwright::cuda {

__device__ __forceinline__ int larger(int a, int b) { return a > b ? a : b; }
__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }

// Rows [first, end).
struct RowRange {
  int first, end;
};

// The rows of one group.
__device__ __forceinline__ RowRange rows_of_group(const RowGroups& groups, int group) {
  int first = 0;
  for (int g = static_cast<int>(threadIdx.x) % kWarpSize; g < group; g += kWarpSize) {
    first = larger(first, groups.ends[g]);
  }
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    first = larger(first, __shfl_xor_sync(kFullMask, first, offset));
  }
  return {smaller(first, groups.rows), smaller(larger(first, groups.ends[group]), groups.rows)};
}

// Up to kRows rows of one group. The rows of no group come last, as those of group `count`.
struct RowTile {
  int group;  // -1: there is no such tile.
  int row0;   // The tile's first row.
  int end;    // The end of the group: the tile may reach beyond it.
};

// An upper bound of the tiles of kRows rows, whatever the ends: each group that has rows may have one that is not full.
template <int kRows>
WARPWRIGHT_HOST_DEVICE int64_t most_row_tiles(const RowGroups& groups) {
  const int64_t rows = groups.rows, parts = rows < int64_t{groups.count} + 1 ? rows : int64_t{groups.count} + 1;
  return (rows + parts * (kRows - 1)) / kRows;
}

// Tile `index` of all groups' tiles, group by group. Each lane looks at one of 32 groups at a time.
template <int kRows>
__device__ __forceinline__ RowTile find_row_tile(const RowGroups& groups, int index) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  int before = 0, tiles_before = 0;  // Where the groups so far end, and their tiles.
  for (int first = 0; first <= groups.count; first += kWarpSize) {
    const int group = first + lane;
    int end = group < groups.count ? smaller(groups.ends[group], groups.rows) : groups.rows;
    end = larger(end, before);
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int other = __shfl_sync(kFullMask, end, lane - step);
      if (lane >= step) end = larger(end, other);
    }
    const int previous = __shfl_sync(kFullMask, end, lane - 1), start = lane == 0 ? before : previous;
    const int tiles = (end - start) / kRows + ((end - start) % kRows != 0 ? 1 : 0);
    int last = tiles_before + tiles;  // One past this group's tiles.
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int other = __shfl_sync(kFullMask, last, lane - step) - tiles_before;
      if (lane >= step) last += other;
    }
    const bool here = index >= last - tiles && index < last;
    const unsigned found = __ballot_sync(kFullMask, here);
    if (found != 0) {
      const int owner = __ffs(static_cast<int>(found)) - 1;
      const int row0 = start + (index - (last - tiles)) * kRows;
      return {first + owner, __shfl_sync(kFullMask, row0, owner), __shfl_sync(kFullMask, end, owner)};
    }
    before = __shfl_sync(kFullMask, end, kWarpSize - 1);
    tiles_before = __shfl_sync(kFullMask, last, kWarpSize - 1);
  }
  return {-1, 0, 0};
}

}  // namespace warpwright::cuda
