// Tiles of wgmma's operands in shared memory: how TMA brings them, and what wgmma is told about them (sm_90a).
//
// A tile is some rows by kSpanBytes of the inner dimension, the span that the swizzle permutes. Whichever dimension
// lies together in global memory lies together here: k, and each row is a line of 128 bytes; or the rows, and the tile
// is made of boxes of 64 rows, whose lines of 128 bytes are a step of k each. Either way 64 rows are kBoxBytes.

#pragma once

#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace warpwright::cuda {

inline constexpr auto kOperandSwizzle = ptx::Swizzle::k128Bytes;
inline constexpr int kSpanBytes = ptx::swizzle_span(kOperandSwizzle);
// A span in elements: a step along K.
WARPWRIGHT_HOST_DEVICE constexpr int span_of(DType dtype) { return kSpanBytes / (dtype == DType::kFloat32 ? 4 : 2); }
inline constexpr int kBoxRows = 64, kBoxBytes = kBoxRows * kSpanBytes;
inline constexpr int kPatternBytes = 8 * kSpanBytes;  // The swizzle's pattern: tiles start where it does.
static_assert(kBoxRows == ptx::kWgmmaM, "one wgmma's rows of A are a box");

// What the producer knows of an operand. The map has the matrix' two dimensions, the one that lies together first, and,
// of a batch, three more.
struct WgmmaOperand {
  ptx::TensorMap map;
  bool along_k;      // k lies together.
  bool batch[3];     // Whether a dimension of the batch is one of the operand's too; else all share it.
  unsigned sharers;  // Blocks of the cluster that need the same tile: each loads its part for all of them.
};

// The host's: an operand whose tiles of `rows` rows `sharers` blocks load together.
inline WgmmaOperand wgmma_operand(const ptx::TensorLayout& layout, bool along_k, int rows, int sharers = 1) {
  WgmmaOperand operand{};
  const int span = span_of(layout.dtype), lines = along_k ? rows / sharers : span;
  operand.map = ptx::encode_tiled(layout, {{span, lines, 1, 1, 1}}, kOperandSwizzle);
  operand.along_k = along_k;
  operand.sharers = static_cast<unsigned>(sharers);
  return operand;
}

// Where its tiles come from, but for the row.
struct WgmmaSource {
  int k;
  int batch[3];
  int rank;  // Of the block in its cluster.
};

template <int kRank>
__device__ __forceinline__ void load_box(unsigned char* to, const WgmmaOperand& operand, ptx::Mbarrier* full,
                                         const int (&coordinates)[kRank]) {
  if (operand.sharers > 1) {
    const auto all = static_cast<uint16_t>((1u << operand.sharers) - 1);
    ptx::tma_load_multicast(to, &operand.map, full, coordinates, all);
  } else {
    ptx::tma_load(to, &operand.map, full, coordinates);
  }
}

// Starts loading the tile of kRows rows from `first_row` and `from.k` on, or the block's part of it.
template <int kRows>
__device__ __forceinline__ void load_operand(unsigned char* tile, const WgmmaOperand& operand, ptx::Mbarrier* full,
                                             int first_row, const WgmmaSource& from, bool batched = false) {
  const int sharers = static_cast<int>(operand.sharers);
  const int rows = operand.along_k ? kRows / sharers : kBoxRows;
  for (int at = from.rank % sharers * rows; at < kRows; at += sharers * rows) {
    const int row = first_row + at;
    const int together = operand.along_k ? from.k : row, across = operand.along_k ? row : from.k;
    unsigned char* const to = tile + at * kSpanBytes;
    if (batched) {
      load_box(to, operand, full,
               {together, across, operand.batch[2] ? from.batch[2] : 0, operand.batch[1] ? from.batch[1] : 0,
                operand.batch[0] ? from.batch[0] : 0});
    } else {
      load_box(to, operand, full, {together, across});
    }
  }
}

// What wgmma is told of the tile at `tile`, for its first step along k.
__device__ __forceinline__ uint64_t operand_descriptor(const unsigned char* tile) {
  return ptx::wgmma_descriptor(tile, kBoxBytes, kPatternBytes, kOperandSwizzle);
}

// The same of its box of 64 rows `box`, for step `step`: the descriptor's lowest bits are the address in units of 16
// bytes, and shared memory is not so large that they overflow.
template <bool kAlongK>
__device__ __forceinline__ uint64_t advanced(uint64_t descriptor, int box, int step) {
  constexpr int kLines = ptx::kWgmmaK<__half>;  // Rows lie together in 16-bit operands alone.
  return descriptor + (box * kBoxBytes + step * (kAlongK ? ptx::kProductBytes : kLines * kSpanBytes)) / 16;
}

}  // namespace warpwright::cuda
