// A tile of a float32 product on the tensor cores (sm_80), as TF32 or as three products of TF32 parts: the loop over K,
// whatever the operands are copied from, and the sums' way to shared memory.
//
// TF32 keeps 10 of float32's 23 bits of mantissa. With x = big + small, both TF32, a b = big big + big small + small
// big up to the product of the small parts, which is less than float32's own rounding ("Recovering single precision
// accuracy from Tensor Cores", Ootomo and Yokota, 2022). The tensor cores cut off what they add, so their sums are
// moved to ordinary float32 ones every kPromoteSteps steps, where each addition rounds to nearest.
//
// ldmatrix transposes 16-bit elements only, so fragments are read element by element, out of lines that are padded
// against bank conflicts.

#pragma once

#include <algorithm>

#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/tf32.cuh"

namespace warpwright::cuda {

struct Tf32Tile {
  using Element = float;
  static constexpr int kVector = 4;           // Elements of 16 bytes.
  static constexpr bool kRunsAlongK = false;  // How elements lie that are read one by one.
  static constexpr int kM = 128, kN = 64, kInner = 32, kStages = 3, kPromoteSteps = 4;
  static constexpr int kWarpsM = 4, kWarpsN = 2, kThreads = kWarpsM * kWarpsN * 32;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;  // 32 x 32, twice in registers.
  static constexpr int kMmaRows = 16, kMmaColumns = 8, kMmaStep = ptx::kMmaK<ptx::Tf32>;
  static constexpr int kStagedColumns = kN + 8;

  // A tile's lines in shared memory: rows of K, or steps of K. The padding puts the 8 rows by 4 steps of a fragment,
  // which a warp reads at once, in 32 banks.
  template <bool kAlongK, int kRows>
  static constexpr int kLine = kAlongK ? kInner + 4 : kRows + 8;
  template <bool kAlongK, int kRows>
  static constexpr int kFloats = kLine<kAlongK, kRows> * (kAlongK ? kRows : kInner);
  template <bool kAAlongK, bool kBAlongK>
  static constexpr int kStageFloats = kFloats<kAAlongK, kM> + kFloats<kBAlongK, kN>;
  template <bool kAAlongK, bool kBAlongK>
  static constexpr int kSharedBytes = 4 * std::max(kStages * kStageFloats<kAAlongK, kBAlongK>, kM* kStagedColumns);

  // The place of an element, in bytes.
  template <bool kAlongK, int kRows>
  static __device__ __forceinline__ int place(int row, int k) {
    return 4 * (kAlongK ? row * kLine<true, kRows> + k : k * kLine<false, kRows> + row);
  }

  using Sums = float[kWarpM / kMmaRows][kWarpN / kMmaColumns][4];
};

// A number as two of TF32. What rounds up to infinity has no small part that would help.
struct Tf32Parts {
  uint32_t big, small;
};
template <bool kAlongK, int kRows>
__device__ __forceinline__ Tf32Parts tf32_parts(const unsigned char* tile, int row, int k) {
  const float x = *reinterpret_cast<const float*>(tile + Tf32Tile::place<kAlongK, kRows>(row, k));
  const uint32_t big = ptx::round_to_tf32(x);
  return {big, ptx::round_to_tf32(x - __uint_as_float(big))};
}

// The warp's part of one step's product, of three parts or of one.
template <bool kAAlongK, bool kBAlongK>
__device__ __forceinline__ void tf32_step(Tf32Tile::Sums& sums, const unsigned char* a_tile,
                                          const unsigned char* b_tile, int warp_m, int warp_n, int lane, bool three) {
  using Tile = Tf32Tile;
  constexpr int kDown = Tile::kWarpM / Tile::kMmaRows, kAcross = Tile::kWarpN / Tile::kMmaColumns;
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int k = 0; k < Tile::kInner; k += Tile::kMmaStep) {
    uint32_t b_big[kAcross][2], b_small[kAcross][2];
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = warp_n + j * Tile::kMmaColumns + g;
        const Tf32Parts parts = tf32_parts<kBAlongK, Tile::kN>(b_tile, row, k + t + 4 * e);
        b_big[j][e] = parts.big;
        b_small[j][e] = parts.small;
      }
    }
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
      uint32_t a_big[4], a_small[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_m + i * Tile::kMmaRows + g + e % 2 * 8;
        const Tf32Parts parts = tf32_parts<kAAlongK, Tile::kM>(a_tile, row, k + t + e / 2 * 4);
        a_big[e] = parts.big;
        a_small[e] = parts.small;
      }
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
        if (three) {  // The small ones first: they are not lost among large sums.
          ptx::mma<ptx::Tf32>(sums[i][j], a_small, b_big[j]);
          ptx::mma<ptx::Tf32>(sums[i][j], a_big, b_small[j]);
        }
        ptx::mma<ptx::Tf32>(sums[i][j], a_big, b_big[j]);
      }
    }
  }
}

// The sums over steps [first, last) of kInner each, as (kM, kStagedColumns) at the start of `shared`, which has
// Tf32Tile::kSharedBytes, for all threads to read. start(a_tile, b_tile, step) starts the copies of a step's tiles.
template <bool kAAlongK, bool kBAlongK, class Start>
__device__ __forceinline__ const float* tf32_sums(unsigned char* shared, int64_t first, int64_t last, bool three,
                                                  const Start& start) {
  using Tile = Tf32Tile;
  constexpr int kABytes = 4 * Tile::kFloats<kAAlongK, Tile::kM>;
  constexpr int kStageBytes = 4 * Tile::kStageFloats<kAAlongK, kBAlongK>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_m = warp / Tile::kWarpsN * Tile::kWarpM, warp_n = warp % Tile::kWarpsN * Tile::kWarpN;
  int filling = 0, used = 0;  // Stages.
  const auto start_step = [&](int64_t step) {
    unsigned char* const stage = shared + filling * kStageBytes;
    if (step < last) start(stage, stage + kABytes, step);
    ptx::cp_async_commit();
    filling = filling + 1 == Tile::kStages ? 0 : filling + 1;
  };

  Tile::Sums sums = {}, totals = {};
  for (int64_t step = first; step < first + Tile::kStages - 1; ++step) start_step(step);
  for (int64_t step = first; step < last; ++step) {
    ptx::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();
    start_step(step + Tile::kStages - 1);
    const unsigned char* const stage = shared + used * kStageBytes;
    used = used + 1 == Tile::kStages ? 0 : used + 1;
    tf32_step<kAAlongK, kBAlongK>(sums, stage, stage + kABytes, warp_m, warp_n, lane, three);
    // Counted from K's start: where a sum is rounded does not depend on how it is split.
    if ((step + 1) % Tile::kPromoteSteps != 0 && step + 1 != last) continue;
#pragma unroll
    for (int i = 0; i < Tile::kWarpM / Tile::kMmaRows; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kWarpN / Tile::kMmaColumns; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          totals[i][j][e] += sums[i][j][e];
          sums[i][j][e] = 0.0f;
        }
      }
    }
  }
  // Out through shared memory, as in tile/mma_tile.cuh.
  __syncthreads();
  auto* const staged = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < Tile::kWarpM / Tile::kMmaRows; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kWarpN / Tile::kMmaColumns; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_m + i * Tile::kMmaRows + e / 2 * 8 + lane / 4;
        const int col = warp_n + j * Tile::kMmaColumns + lane % 4 * 2 + e % 2;
        staged[row * Tile::kStagedColumns + col] = totals[i][j][e];
      }
    }
  }
  __syncthreads();
  return staged;
}

}  // namespace warpwright::cuda
