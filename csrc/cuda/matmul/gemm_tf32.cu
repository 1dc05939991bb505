// float32 products on the tensor cores (sm_80 and later), as TF32 or as three products of TF32 parts.
//
// TF32 keeps 10 of float32's 23 bits of mantissa. With x = big + small, both TF32, a b = big big + big small + small
// big up to the product of the small parts, which is less than float32's own rounding ("Recovering single precision
// accuracy from Tensor Cores", Ootomo and Yokota, 2022). The tensor cores cut off what they add, so their sums are
// moved to ordinary float32 ones every kPromoteSteps steps, where each addition rounds to nearest.
//
// ldmatrix transposes 16-bit elements only, so fragments are read element by element, out of lines that are padded
// against bank conflicts. Operands of any alignment are copied, 4 bytes at a time where 16 do not fit.

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/matmul/gemm_mma.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/tf32.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

using ptx::Tf32;

constexpr int kTileM = 128, kTileN = 64, kTileK = 32;
constexpr int kWarpsM = 4, kWarpsN = 2, kThreads = kWarpsM * kWarpsN * 32;
constexpr int kWarpM = kTileM / kWarpsM, kWarpN = kTileN / kWarpsN;  // 32 x 32, twice in registers.
constexpr int kMmaM = 16, kMmaN = 8, kMmaK = ptx::kMmaK<Tf32>;
constexpr int kStages = 3, kPromoteSteps = 4;
constexpr int kStagedColumns = kTileN + 8;

// A tile's lines in shared memory: rows of K, or steps of K. The padding puts the 8 rows by 4 steps of a fragment,
// which a warp reads at once, in 32 banks.
template <bool kAlongK, int kRows>
inline constexpr int kLine = kAlongK ? kTileK + 4 : kRows + 8;
template <bool kAlongK, int kRows>
inline constexpr int kTileFloats = kLine<kAlongK, kRows> * (kAlongK ? kRows : kTileK);

struct Operand {
  const float* data;
  int64_t ld, rows, k;
  bool aligned;  // Whether every line starts at a multiple of 16 bytes.
};

struct GemmTf32Params {
  GemmParams gemm;
  float* partials;  // Null without splits.
  int splits;
  bool a_aligned, b_aligned;
};

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// Starts copying kCount floats at a time of the tile at (row0, k0), zeros past the matrix' edges.
template <bool kAlongK, int kRows, int kCount>
__device__ __forceinline__ void start_copies(float* tile, const Operand& operand, int64_t row0, int64_t k0) {
  constexpr int kWidth = (kAlongK ? kTileK : kRows) / kCount, kCopies = kRows * kTileK / kCount;
  static_assert(kCopies % kThreads == 0, "every thread copies as much");
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kCopies; i += kThreads) {
    const int line = i / kWidth, along = i % kWidth * kCount;
    const int64_t at_row = row0 + (kAlongK ? line : along), at_k = k0 + (kAlongK ? along : line);
    const int64_t left = kAlongK ? operand.k - at_k : operand.rows - at_row;
    const bool inside = at_row < operand.rows && at_k < operand.k;
    const int count = !inside ? 0 : left < kCount ? static_cast<int>(left) : kCount;
    const int64_t from = kAlongK ? at_row * operand.ld + at_k : at_k * operand.ld + at_row;
    ptx::cp_async<kCount * 4>(tile + line * kLine<kAlongK, kRows> + along, operand.data + (inside ? from : 0),
                              count * 4);
  }
}

template <bool kAlongK, int kRows>
__device__ __forceinline__ void start_tile(float* tile, const Operand& operand, int64_t row0, int64_t k0) {
  if (operand.aligned) {
    start_copies<kAlongK, kRows, 4>(tile, operand, row0, k0);
  } else {
    start_copies<kAlongK, kRows, 1>(tile, operand, row0, k0);
  }
}

template <bool kAlongK, int kRows>
__device__ __forceinline__ float element(const float* tile, int row, int k) {
  return tile[kAlongK ? row * kLine<true, kRows> + k : k * kLine<false, kRows> + row];
}

// A number as two of TF32. What rounds up to infinity has no small part that would help.
struct Parts {
  uint32_t big, small;
};
__device__ __forceinline__ Parts split_tf32(float x) {
  const uint32_t big = ptx::round_to_tf32(x);
  return {big, ptx::round_to_tf32(x - __uint_as_float(big))};
}

// One step of K for one fragment of A and all of the warp's B: `big` and `small` parts of B are the caller's.
template <bool kAAlongK, bool kBAlongK>
__device__ __forceinline__ void multiply_step(float (&sums)[kWarpM / kMmaM][kWarpN / kMmaN][4], const float* a_tile,
                                              const float* b_tile, int warp_m, int warp_n, int lane, bool three) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int k = 0; k < kTileK; k += kMmaK) {
    uint32_t b_big[kWarpN / kMmaN][2], b_small[kWarpN / kMmaN][2];
#pragma unroll
    for (int j = 0; j < kWarpN / kMmaN; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Parts parts = split_tf32(element<kBAlongK, kTileN>(b_tile, warp_n + j * kMmaN + g, k + t + 4 * e));
        b_big[j][e] = parts.big;
        b_small[j][e] = parts.small;
      }
    }
#pragma unroll
    for (int i = 0; i < kWarpM / kMmaM; ++i) {
      uint32_t a_big[4], a_small[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_m + i * kMmaM + g + e % 2 * 8;
        const Parts parts = split_tf32(element<kAAlongK, kTileM>(a_tile, row, k + t + e / 2 * 4));
        a_big[e] = parts.big;
        a_small[e] = parts.small;
      }
#pragma unroll
      for (int j = 0; j < kWarpN / kMmaN; ++j) {
        if (three) {  // The small ones first: they are not lost among large sums.
          ptx::mma<Tf32>(sums[i][j], a_small, b_big[j]);
          ptx::mma<Tf32>(sums[i][j], a_big, b_small[j]);
        }
        ptx::mma<Tf32>(sums[i][j], a_big, b_big[j]);
      }
    }
  }
}

// machine code: HMMA.1688.F32.TF32, LDGSTS.128, LDGSTS
template <bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(kThreads) gemm_tf32_kernel(const GemmTf32Params params) {
  constexpr int kAFloats = kTileFloats<kAAlongK, kTileM>, kStageFloats = kAFloats + kTileFloats<kBAlongK, kTileN>;
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  auto* const stages = reinterpret_cast<float*>(shared);
  const GemmParams& p = params.gemm;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_m = warp / kWarpsN * kWarpM, warp_n = warp % kWarpsN * kWarpN;
  const int64_t tiles = tiles_of<kTileM, kTileN>(p.m, p.n), matrices = p.matrices();
  const int64_t split = blockIdx.x / (tiles * matrices), index = blockIdx.x / tiles % matrices;
  const MatrixTile tile = banded_tile<kTileM, kTileN>(blockIdx.x % tiles, p.m, p.n);
  const Operand a{static_cast<const float*>(p.a) + batch_offset(p, p.a_batch, index), kAAlongK ? p.a_row : p.a_col, p.m,
                  p.k, params.a_aligned};
  const Operand b{static_cast<const float*>(p.b) + batch_offset(p, p.b_batch, index), kBAlongK ? p.b_row : p.b_col, p.n,
                  p.k, params.b_aligned};
  const int64_t steps = (p.k + kTileK - 1) / kTileK;
  const int64_t first = steps * split / params.splits, last = steps * (split + 1) / params.splits;
  const bool three = p.precision == Precision::kTf32x3;
  int filling = 0, used = 0;  // Stages.
  const auto start_step = [&](int64_t step) {
    float* const stage = stages + filling * kStageFloats;
    if (step < last) {
      start_tile<kAAlongK, kTileM>(stage, a, tile.m0, step * kTileK);
      start_tile<kBAlongK, kTileN>(stage + kAFloats, b, tile.n0, step * kTileK);
    }
    ptx::cp_async_commit();
    filling = filling + 1 == kStages ? 0 : filling + 1;
  };

  float sums[kWarpM / kMmaM][kWarpN / kMmaN][4] = {}, totals[kWarpM / kMmaM][kWarpN / kMmaN][4] = {};
  for (int64_t step = first; step < first + kStages - 1; ++step) start_step(step);
  for (int64_t step = first; step < last; ++step) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();
    start_step(step + kStages - 1);
    const float* const stage = stages + used * kStageFloats;
    used = used + 1 == kStages ? 0 : used + 1;
    multiply_step<kAAlongK, kBAlongK>(sums, stage, stage + kAFloats, warp_m, warp_n, lane, three);
    // Counted from K's start: where a sum is rounded does not depend on how it is split.
    if ((step + 1) % kPromoteSteps != 0 && step + 1 != last) continue;
#pragma unroll
    for (int i = 0; i < kWarpM / kMmaM; ++i) {
#pragma unroll
      for (int j = 0; j < kWarpN / kMmaN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          totals[i][j][e] += sums[i][j][e];
          sums[i][j][e] = 0.0f;
        }
      }
    }
  }
  // Out through shared memory, as in gemm_mma.cu.
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarpM / kMmaM; ++i) {
#pragma unroll
    for (int j = 0; j < kWarpN / kMmaN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_m + i * kMmaM + e / 2 * 8 + lane / 4, col = warp_n + j * kMmaN + lane % 4 * 2 + e % 2;
        stages[row * kStagedColumns + col] = totals[i][j][e];
      }
    }
  }
  __syncthreads();
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kTileM * kTileN; i += kThreads) {
    const int64_t row = tile.m0 + i / kTileN, col = tile.n0 + i % kTileN;
    if (row >= p.m || col >= p.n) continue;
    const float sum = stages[i / kTileN * kStagedColumns + i % kTileN];
    if (params.partials != nullptr) {
      params.partials[partial_at(p, split, index, row, col)] = sum;
    } else {
      store_element<float>(p, index, row, col, sum);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

bool aligned(const GemmParams& p, const void* data, const int64_t (&batch)[kMaxBatchDims], int64_t ld) {
  for (int d = 0; d < kMaxBatchDims; ++d) {
    if (p.batch[d] > 1 && batch[d] % 4 != 0) return false;
  }
  return ld % 4 == 0 && reinterpret_cast<uintptr_t>(data) % ptx::kCopyBytes == 0;
}

template <bool kAAlongK, bool kBAlongK>
void launch_layout(const GemmTf32Params& params, Stream stream) {
  const GemmParams& p = params.gemm;
  constexpr int kStageFloats = kTileFloats<kAAlongK, kTileM> + kTileFloats<kBAlongK, kTileN>;
  constexpr int kSharedBytes = 4 * std::max(kStages * kStageFloats, kTileM * kStagedColumns);
  static_assert(kSharedBytes <= 99 * 1024, "a block's shared memory on sm_86 and sm_89");
  const int64_t blocks = p.matrices() * tiles_of<kTileM, kTileN>(p.m, p.n) * params.splits;
  if (blocks == 0) return;
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream, kSharedBytes};
  launch("gemm_tf32", gemm_tf32_kernel<kAAlongK, kBAlongK>, config, params);
}

}  // namespace

bool gemm_tf32_takes(const GemmParams& p) {
  return p.dtype == DType::kFloat32 && p.precision != Precision::kIeee && (p.a_row == 1 || p.a_col == 1) &&
         (p.b_row == 1 || p.b_col == 1);
}

void gemm_tf32(const GemmParams& p, int splits, float* partials, Stream stream) {
  const bool a_along_k = p.a_col == 1, b_along_k = p.b_col == 1;
  const GemmTf32Params params{p, splits > 1 ? partials : nullptr, splits,
                              aligned(p, p.a, p.a_batch, a_along_k ? p.a_row : p.a_col),
                              aligned(p, p.b, p.b_batch, b_along_k ? p.b_row : p.b_col)};
  if (a_along_k) {
    b_along_k ? launch_layout<true, true>(params, stream) : launch_layout<true, false>(params, stream);
  } else {
    b_along_k ? launch_layout<false, true>(params, stream) : launch_layout<false, false>(params, stream);
  }
  if (splits > 1) reduce_splits(p, partials, splits, stream);
}

}  // namespace warpwright::cuda
