// A tile of a tensor-core product (sm_80): the loop over K, whatever the operands are copied from, and the sums' way to
// shared memory.
//
// Stages of both operands are on their way to shared memory or in it: while the tensor cores work on one, the next ones
// arrive. The only barrier of a step says both that the step's tiles have come for all threads, and that all are done
// with those of the step before, whose place the next copies take.

#pragma once

#include <algorithm>

#include "cuda/ptx/mma.cuh"
#include "cuda/tile/mma_operand.cuh"

namespace warpwright::cuda {

inline constexpr int kMmaM = 16, kMmaN = 8, kMmaInner = 16;

// A block's part of the output, and how its warps share it.
template <int M, int N, int kWarpsDown, int kWarpsAcross, int kDepth>
struct MmaTile {
  using Element = uint16_t;
  static constexpr int kVector = kChunk, kInner = kTileK;
  static constexpr bool kRunsAlongK = true;  // How elements lie that are read one by one.
  static constexpr int kM = M, kN = N, kStages = kDepth;
  static constexpr int kWarpsN = kWarpsAcross, kThreads = kWarpsDown * kWarpsAcross * 32;
  static constexpr int kWarpM = M / kWarpsDown, kWarpN = N / kWarpsAcross;
  static constexpr int kABytes = kOperandBytes<M>, kStageBytes = kABytes + kOperandBytes<N>;
  // The sums on their way out: eight more columns put the rows that half a warp writes at once in different banks.
  static constexpr int kStagedColumns = N + 8;
  static constexpr int kSharedBytes = std::max(kStages * kStageBytes, M * kStagedColumns * 4);
  // The place of a chunk, in bytes.
  template <bool kAlongK, int kRows>
  static __device__ __forceinline__ int place(int row, int k) {
    return chunk_offset<kAlongK, kRows>(row, k);
  }
  static_assert(kWarpM % kMmaM == 0 && kWarpN % (2 * kMmaN) == 0 && kTileK % kMmaInner == 0);
  static_assert(kSharedBytes <= 99 * 1024, "a block's shared memory on sm_86 and sm_89");
};
// Reads each operand least often: a warp has 64 x 32.
using LargeMmaTile = MmaTile<kTileRows, kTileRows, 2, 4, 4>;

template <class Tile>
using MmaSums = float[Tile::kWarpM / kMmaM][Tile::kWarpN / kMmaN][4];

// What a product's loop calls where nothing else is wanted of its operands.
struct NothingMore {
  template <class A>
  __device__ __forceinline__ void operator()(const A&) const {}
};

// The warp's part of one step's product. more(a) has the warp's rows of A of each kMmaInner along K.
template <class T, class Tile, bool kAAlongK, bool kBAlongK, class More>
__device__ __forceinline__ void mma_step(MmaSums<Tile>& sums, const unsigned char* a_tile, int warp_m, int warp_n,
                                         int lane, More& more) {
  const unsigned char* const b_tile = a_tile + Tile::kABytes;
#pragma unroll
  for (int k = 0; k < kTileK; k += kMmaInner) {
    uint32_t a_part[Tile::kWarpM / kMmaM][4], b_part[Tile::kWarpN / kMmaN / 2][4];
#pragma unroll
    for (int i = 0; i < Tile::kWarpM / kMmaM; ++i) {
      load_a<kAAlongK, Tile::kM>(a_part[i], a_tile, warp_m + i * kMmaM, k, lane);
    }
#pragma unroll
    for (int j = 0; j < Tile::kWarpN / kMmaN / 2; ++j) {
      load_b<kBAlongK, Tile::kN>(b_part[j], b_tile, warp_n + j * 2 * kMmaN, k, lane);
    }
#pragma unroll
    for (int i = 0; i < Tile::kWarpM / kMmaM; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kWarpN / kMmaN; ++j) {
        const uint32_t column[2] = {b_part[j / 2][j % 2 * 2], b_part[j / 2][j % 2 * 2 + 1]};
        ptx::mma_m16n8k16<T>(sums[i][j], a_part[i], column);
      }
    }
    more(a_part);
  }
}

// The sums over steps [first, last) of kTileK each, as (kM, kStagedColumns) at the start of `shared`, which has
// Tile::kSharedBytes, for all threads to read. start(a_tile, b_tile, step) starts the copies of a step's tiles; `more`
// is mma_step's.
template <class T, class Tile, bool kAAlongK, bool kBAlongK, class Start, class More>
__device__ __forceinline__ const float* mma_sums(unsigned char* shared, int64_t first, int64_t last, const Start& start,
                                                 More& more) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_m = warp / Tile::kWarpsN * Tile::kWarpM, warp_n = warp % Tile::kWarpsN * Tile::kWarpN;
  const auto start_step = [&](int64_t step) {
    unsigned char* const stage = shared + step % Tile::kStages * Tile::kStageBytes;
    if (step < last) start(stage, stage + Tile::kABytes, step);
    ptx::cp_async_commit();  // Empty past the end: a group for each step keeps the count.
  };

  MmaSums<Tile> sums = {};
  for (int64_t step = first; step < first + Tile::kStages - 1; ++step) start_step(step);
  for (int64_t step = first; step < last; ++step) {
    ptx::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();
    start_step(step + Tile::kStages - 1);
    const unsigned char* const stage = shared + step % Tile::kStages * Tile::kStageBytes;
    mma_step<T, Tile, kAAlongK, kBAlongK>(sums, stage, warp_m, warp_n, lane, more);
  }
  // Through shared memory neighbouring threads get neighbouring elements, and the epilogue is in the code once, not
  // once for each of a thread's sums. The last step waited for the last tiles: nothing is on its way.
  __syncthreads();
  auto* const staged = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < Tile::kWarpM / kMmaM; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kWarpN / kMmaN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_m + i * kMmaM + e / 2 * 8 + lane / 4, col = warp_n + j * kMmaN + lane % 4 * 2 + e % 2;
        staged[row * Tile::kStagedColumns + col] = sums[i][j][e];
      }
    }
  }
  __syncthreads();
  return staged;
}

template <class T, class Tile, bool kAAlongK, bool kBAlongK, class Start>
__device__ __forceinline__ const float* mma_sums(unsigned char* shared, int64_t first, int64_t last,
                                                 const Start& start) {
  NothingMore more;
  return mma_sums<T, Tile, kAAlongK, kBAlongK>(shared, first, last, start, more);
}

// Steps of K.
__device__ __forceinline__ int64_t mma_steps(int64_t k) { return (k + kTileK - 1) / kTileK; }

// Calls store(row, col, sum over steps [first, last) of a[row, k] * b[col, k]) for every element of the tile at (m0,
// n0) that lies inside the operands.
template <class T, class Tile, bool kAAlongK, bool kBAlongK, class Store>
__device__ __forceinline__ void mma_tile(unsigned char* shared, const MmaOperand& a, int64_t m0, const MmaOperand& b,
                                         int64_t n0, int64_t first, int64_t last, const Store& store) {
  const auto start = [&](unsigned char* a_tile, unsigned char* b_tile, int64_t step) {
    start_tile<kAAlongK, Tile::kThreads, Tile::kM>(a_tile, a, m0, step * kTileK);
    start_tile<kBAlongK, Tile::kThreads, Tile::kN>(b_tile, b, n0, step * kTileK);
  };
  const float* const staged = mma_sums<T, Tile, kAAlongK, kBAlongK>(shared, first, last, start);
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kM * Tile::kN; i += Tile::kThreads) {
    const int row = i / Tile::kN, col = i % Tile::kN;
    if (m0 + row < a.rows && n0 + col < b.rows) store(m0 + row, n0 + col, staged[row * Tile::kStagedColumns + col]);
  }
}

}  // namespace warpwright::cuda
