// float32 products on the tensor cores (sm_80 and later), as TF32 or as three products of TF32 parts:
// tile/tf32_tile.cuh.
//
// Operands of any alignment are copied, 4 bytes at a time where 16 do not fit.

#include "cuda/launch.h"
#include "cuda/matmul/gemm_mma.cuh"
#include "cuda/tile/scheduler.cuh"
#include "cuda/tile/tf32_tile.cuh"

namespace warpwright::cuda {
namespace {

using Tile = Tf32Tile;

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
__device__ __forceinline__ void start_copies(unsigned char* tile, const Operand& operand, int64_t row0, int64_t k0) {
  constexpr int kWidth = (kAlongK ? Tile::kInner : kRows) / kCount, kCopies = kRows * Tile::kInner / kCount;
  static_assert(kCopies % Tile::kThreads == 0, "every thread copies as much");
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kCopies; i += Tile::kThreads) {
    const int line = i / kWidth, along = i % kWidth * kCount;
    const int row = kAlongK ? line : along, k = kAlongK ? along : line;
    const int64_t at_row = row0 + row, at_k = k0 + k;
    const int64_t left = kAlongK ? operand.k - at_k : operand.rows - at_row;
    const bool inside = at_row < operand.rows && at_k < operand.k;
    const int count = !inside ? 0 : left < kCount ? static_cast<int>(left) : kCount;
    const int64_t from = kAlongK ? at_row * operand.ld + at_k : at_k * operand.ld + at_row;
    ptx::cp_async<kCount * 4>(tile + Tile::place<kAlongK, kRows>(row, k), operand.data + (inside ? from : 0),
                              count * 4);
  }
}

template <bool kAlongK, int kRows>
__device__ __forceinline__ void start_tile(unsigned char* tile, const Operand& operand, int64_t row0, int64_t k0) {
  if (operand.aligned) {
    start_copies<kAlongK, kRows, Tile::kVector>(tile, operand, row0, k0);
  } else {
    start_copies<kAlongK, kRows, 1>(tile, operand, row0, k0);
  }
}

// machine code: HMMA.1688.F32.TF32, LDGSTS.128, LDGSTS
template <bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(Tile::kThreads) gemm_tf32_kernel(const GemmTf32Params params) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const GemmParams& p = params.gemm;
  const int64_t tiles = tiles_of<Tile::kM, Tile::kN>(p.m, p.n), matrices = p.matrices();
  const int64_t split = blockIdx.x / (tiles * matrices), index = blockIdx.x / tiles % matrices;
  const MatrixTile tile = banded_tile<Tile::kM, Tile::kN>(blockIdx.x % tiles, p.m, p.n);
  const Operand a{static_cast<const float*>(p.a) + batch_offset(p, p.a_batch, index), kAAlongK ? p.a_row : p.a_col, p.m,
                  p.k, params.a_aligned};
  const Operand b{static_cast<const float*>(p.b) + batch_offset(p, p.b_batch, index), kBAlongK ? p.b_row : p.b_col, p.n,
                  p.k, params.b_aligned};
  const int64_t steps = (p.k + Tile::kInner - 1) / Tile::kInner;
  const int64_t first = steps * split / params.splits, last = steps * (split + 1) / params.splits;
  const auto start = [&](unsigned char* a_tile, unsigned char* b_tile, int64_t step) {
    start_tile<kAAlongK, Tile::kM>(a_tile, a, tile.m0, step * Tile::kInner);
    start_tile<kBAlongK, Tile::kN>(b_tile, b, tile.n0, step * Tile::kInner);
  };
  const bool three = p.precision == Precision::kTf32x3;
  const float* const staged = tf32_sums<kAAlongK, kBAlongK>(shared, first, last, three, start);
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kM * Tile::kN; i += Tile::kThreads) {
    const int64_t row = tile.m0 + i / Tile::kN, col = tile.n0 + i % Tile::kN;
    if (row >= p.m || col >= p.n) continue;
    const float sum = staged[i / Tile::kN * Tile::kStagedColumns + i % Tile::kN];
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
  constexpr int kSharedBytes = Tile::kSharedBytes<kAAlongK, kBAlongK>;
  static_assert(kSharedBytes <= 99 * 1024, "a block's shared memory on sm_86 and sm_89");
  const int64_t blocks = p.matrices() * tiles_of<Tile::kM, Tile::kN>(p.m, p.n) * params.splits;
  if (blocks == 0) return;
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), stream, kSharedBytes};
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
