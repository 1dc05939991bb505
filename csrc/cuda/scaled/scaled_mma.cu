// Product of 8-bit matrices on the tensor cores (sm_80 and later): cp.async, ldmatrix, mma.sync, by tile/byte_tile.cuh.
//
// Where cp.async cannot copy an operand, because of its strides or its alignment, its threads copy byte by byte.

#include <type_traits>

#include "cuda/launch.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/scaled/epilogue.cuh"
#include "cuda/scaled/scaled_mma.cuh"
#include "cuda/tile/byte_tile.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

using Tile = LargeByteTile;

struct ScaledMmaParams {
  ScaledMatmulParams scaled;
  Decodings formats;
  bool input_chunks, other_chunks;  // Whether cp.async can copy the operand.
};

// Starts copying the tile at (row0, k0), zeros past the matrix' edges.
__device__ __forceinline__ void start_bytes(unsigned char* tile, const Rows& operand, int64_t rows, int64_t k,
                                            bool chunks, int64_t row0, int64_t k0) {
  constexpr int kWidth = Tile::kInner / ptx::kCopyBytes;  // Chunks of a row.
  const auto* const data = static_cast<const unsigned char*>(operand.data);
#pragma unroll
  for (int step = 0; step < Tile::kM * kWidth / Tile::kThreads; ++step) {
    const int i = step * Tile::kThreads + static_cast<int>(threadIdx.x);
    const int row = i / kWidth, col = i % kWidth * ptx::kCopyBytes;
    const int64_t left = row0 + row < rows ? k - k0 - col : 0;
    const int bytes = left <= 0 ? 0 : left < ptx::kCopyBytes ? static_cast<int>(left) : ptx::kCopyBytes;
    const unsigned char* const from =
        data + (bytes == 0 ? 0 : (row0 + row) * operand.stride[0] + (k0 + col) * operand.col_stride);
    unsigned char* const to = tile + Tile::place<true, Tile::kM>(row, col);
    if (chunks) {
      ptx::cp_async(to, from, bytes);
    } else {
#pragma unroll 4
      for (int e = 0; e < ptx::kCopyBytes; ++e) to[e] = e < bytes ? from[e * operand.col_stride] : 0;
    }
  }
}

// Moves the sums of block `block` of k to the totals, with the scales that belong to it. (row0, col0) is where the
// calling thread's first element lies.
__device__ __forceinline__ void promote(const ScaledMmaParams& params, ByteSums<float, Tile>& sums,
                                        ByteSums<float, Tile>& totals, int64_t row0, int64_t col0, int64_t block) {
  constexpr int kFragmentsM = Tile::kWarpM / kMmaM, kFragmentsN = Tile::kWarpN / kMmaN;
  const ScaledMatmulParams& p = params.scaled;
  const float unit = params.formats.a.unit * params.formats.b.unit;
  float row_scales[2 * kFragmentsM], column_scales[2 * kFragmentsN];
#pragma unroll
  for (int i = 0; i < 2 * kFragmentsM; ++i) {
    const int64_t row = row0 + 8 * i;
    row_scales[i] = p.input_scale.by_block && row < p.m ? p.input_scale.at(row, block) : 1.0f;
  }
#pragma unroll
  for (int j = 0; j < 2 * kFragmentsN; ++j) {
    const int64_t col = col0 + j / 2 * kMmaN + j % 2;
    column_scales[j] = p.other_scale.by_block && col < p.n ? p.other_scale.at(col, block) : 1.0f;
  }
#pragma unroll
  for (int i = 0; i < kFragmentsM; ++i) {
#pragma unroll
    for (int j = 0; j < kFragmentsN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        totals[i][j][e] += sums[i][j][e] * unit * row_scales[2 * i + e / 2] * column_scales[2 * j + e % 2];
        sums[i][j][e] = 0.0f;
      }
    }
  }
}

// machine code: int>: IMMA, LDSM.4, LDGSTS.128; else: HMMA.16816.F32, LDSM.4, LDGSTS.128
template <class S>
__global__ void __launch_bounds__(Tile::kThreads) scaled_mma_kernel(const __grid_constant__ ScaledMmaParams params) {
  const ScaledMatmulParams& p = params.scaled;
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const MatrixTile tile = banded_tile<Tile::kM, Tile::kN>(blockIdx.x, p.m, p.n);
  const auto start = [&](unsigned char* a_tile, unsigned char* b_tile, int64_t step) {
    start_bytes(a_tile, p.input, p.m, p.k, params.input_chunks, tile.m0, step * Tile::kInner);
    start_bytes(b_tile, p.other, p.n, p.k, params.other_chunks, tile.n0, step * Tile::kInner);
  };
  const auto to_totals = [&](auto& sums, auto& totals, int row, int col, int64_t block) {
    promote(params, sums, totals, tile.m0 + row, tile.n0 + col, block);
  };
  const int64_t steps = (p.k + Tile::kInner - 1) / Tile::kInner;
  const float* const staged = byte_sums<Tile, S>(shared, steps, params.formats, start, to_totals);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kM * Tile::kN; i += Tile::kThreads) {
    const int64_t row = tile.m0 + i / Tile::kN, col = tile.n0 + i % Tile::kN;
    if (row >= p.m || col >= p.n) continue;
    const float total = staged[i / Tile::kN * Tile::kStagedColumns + i % Tile::kN];
    store_as(p.output_dtype, p.output, row * p.n + col, finished(p, row, col, total));
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

bool has_chunks(const Rows& operand, int64_t rows) {
  return operand.col_stride == 1 && (rows == 1 || operand.stride[0] % ptx::kCopyBytes == 0) &&
         reinterpret_cast<uintptr_t>(operand.data) % ptx::kCopyBytes == 0;
}

}  // namespace

void scaled_mma(const ScaledMatmulParams& params, Stream stream) {
  const int64_t tiles = tiles_of<Tile::kM, Tile::kN>(params.m, params.n);
  if (tiles == 0) return;
  const ScaledMmaParams p{params,
                          {decoding_of(params.input_dtype), decoding_of(params.other_dtype)},
                          has_chunks(params.input, params.m),
                          has_chunks(params.other, params.n)};
  const auto kernel = params.input_dtype == DType::kInt8 ? scaled_mma_kernel<int32_t> : scaled_mma_kernel<float>;
  launch("scaled_mma", kernel, {dim3(static_cast<unsigned>(tiles)), dim3(Tile::kThreads), stream, Tile::kSharedBytes},
         p);
}

}  // namespace warpwright::cuda
