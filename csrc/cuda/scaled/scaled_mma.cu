// Product of 8-bit matrices on the tensor cores (sm_80 and later): cp.async, ldmatrix, mma.sync.
//
// The pipeline is gemm_mma's: a block of 8 warps computes a 128 x 128 tile, kStages tiles of each operand are on their
// way or in shared memory, and one barrier a step says that its tiles have come and those before are done with.
//
// int8 is multiplied as it is, its sums are int32. 8-bit floats become float16 in registers, which holds every one of
// them: that runs where the tensor cores know no 8 bits, and keeps float32's digits, which Hopper's 8-bit product does
// not. A register's four bytes become two registers, of the even and of the odd bytes; both operands are taken apart
// alike, so that the same elements of k meet.
//
// Where cp.async cannot copy an operand, because of its strides or its alignment, its threads copy byte by byte.

#include <algorithm>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/scaled/epilogue.cuh"
#include "cuda/scaled/scaled_mma.cuh"
#include "cuda/tile/mma_operand.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256, kStages = 4;
constexpr int kWarpsM = 2, kWarpsN = 4;
constexpr int kWarpM = kTileRows / kWarpsM, kWarpN = kTileRows / kWarpsN;  // A warp's part of the tile: 64 x 32.
constexpr int kMmaM = 16, kMmaN = 8;
constexpr int kFragmentsM = kWarpM / kMmaM, kFragmentsN = kWarpN / kMmaN;
constexpr int kStepK = 2 * kTileK;  // Bytes of k in a tile, whose elements mma_operand.cuh counts in pairs.
constexpr int kPairs = ptx::kProductBytes / 2;
constexpr int kStageBytes = 2 * kTileBytes;
// The sums on their way out: eight more columns put the rows that half a warp writes at once in different banks.
constexpr int kStagedColumns = kTileRows + 8, kStagedBytes = kTileRows * kStagedColumns * 4;
constexpr int kSharedBytes = std::max(kStages * kStageBytes, kStagedBytes);
static_assert(kWarpsM * kWarpsN * 32 == kThreads);
static_assert(kScaleBlock % kStepK == 0, "a block of scales ends between two steps");

// How bytes in the high halves of 16-bit halves become float16, but for the format's factor.
struct Decoding {
  uint32_t shift;  // Of the magnitude: float16 has as many exponent bits as e5m2, one more than e4m3.
  uint32_t nan;    // Bits that a magnitude carries into if it is the format's only NaN.
  float unit;      // The factor: the distance of the exponents' biases, as a power of 2.
};

struct ScaledMmaParams {
  ScaledMatmulParams scaled;
  Decoding input, other;
  bool input_chunks, other_chunks;  // Whether cp.async can copy the operand.
};

__device__ __forceinline__ uint32_t to_halves(uint32_t word, const Decoding& decoding) {
  const uint32_t magnitude = word & 0x7f007f00u;
  const uint32_t nan = ((magnitude + 0x01000100u) & decoding.nan) >> 1;  // The exponent's highest bit makes it NaN.
  return (word & 0x80008000u) | magnitude >> decoding.shift | nan;
}

// Starts copying the tile at (row0, k0), zeros past the matrix' edges.
__device__ __forceinline__ void start_bytes(unsigned char* tile, const Rows& operand, int64_t rows, int64_t k,
                                            bool chunks, int64_t row0, int64_t k0) {
  constexpr int kWidth = kStepK / ptx::kCopyBytes;  // Chunks of a row.
  const auto* const data = static_cast<const unsigned char*>(operand.data);
#pragma unroll
  for (int step = 0; step < kTileRows * kWidth / kThreads; ++step) {
    const int i = step * kThreads + static_cast<int>(threadIdx.x);
    const int row = i / kWidth, col = i % kWidth * ptx::kCopyBytes;
    const int64_t left = row0 + row < rows ? k - k0 - col : 0;
    const int bytes = left <= 0 ? 0 : left < ptx::kCopyBytes ? static_cast<int>(left) : ptx::kCopyBytes;
    const unsigned char* const from =
        data + (bytes == 0 ? 0 : (row0 + row) * operand.stride[0] + (k0 + col) * operand.col_stride);
    unsigned char* const to = tile + chunk_offset<true>(row, col / 2);
    if (chunks) {
      ptx::cp_async(to, from, bytes);
    } else {
#pragma unroll 4
      for (int e = 0; e < ptx::kCopyBytes; ++e) to[e] = e < bytes ? from[e * operand.col_stride] : 0;
    }
  }
}

// sums += the products of one ptx::kProductBytes of k.
__device__ __forceinline__ void multiply(const ScaledMmaParams&, int32_t (&sums)[kFragmentsM][kFragmentsN][4],
                                         const uint32_t (&a)[kFragmentsM][4], const uint32_t (&b)[kFragmentsN / 2][4]) {
#pragma unroll
  for (int i = 0; i < kFragmentsM; ++i) {
#pragma unroll
    for (int j = 0; j < kFragmentsN; ++j) {
      const uint32_t column[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
      ptx::mma<int8_t>(sums[i][j], a[i], column);
    }
  }
}

__device__ __forceinline__ void multiply(const ScaledMmaParams& p, float (&sums)[kFragmentsM][kFragmentsN][4],
                                         const uint32_t (&a)[kFragmentsM][4], const uint32_t (&b)[kFragmentsN / 2][4]) {
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int up = odd ? 0 : 8;  // Even bytes move to where odd ones are.
    uint32_t columns[kFragmentsN][2];
#pragma unroll
    for (int j = 0; j < kFragmentsN; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) columns[j][e] = to_halves(b[j / 2][j % 2 * 2 + e] << up, p.other);
    }
#pragma unroll
    for (int i = 0; i < kFragmentsM; ++i) {
      uint32_t rows[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) rows[e] = to_halves(a[i][e] << up, p.input);
#pragma unroll
      for (int j = 0; j < kFragmentsN; ++j) ptx::mma<__half>(sums[i][j], rows, columns[j]);
    }
  }
}

// Moves the sums of block `block` of k to the totals, with the scales that belong to it. (row0, col0) is where the
// calling thread's first element lies.
__device__ __forceinline__ void promote(const ScaledMmaParams& params, float (&sums)[kFragmentsM][kFragmentsN][4],
                                        float (&totals)[kFragmentsM][kFragmentsN][4], int64_t row0, int64_t col0,
                                        int64_t block) {
  const ScaledMatmulParams& p = params.scaled;
  const float unit = params.input.unit * params.other.unit;
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
__global__ void __launch_bounds__(kThreads) scaled_mma_kernel(const __grid_constant__ ScaledMmaParams params) {
  constexpr bool kFloat = std::is_same_v<S, float>;
  const ScaledMatmulParams& p = params.scaled;
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_m = warp / kWarpsN * kWarpM, warp_n = warp % kWarpsN * kWarpN;
  const int lane_m = warp_m + lane / 4, lane_n = warp_n + lane % 4 * 2;  // A thread's first element.
  const MatrixTile tile = banded_tile<kTileRows, kTileRows>(blockIdx.x, p.m, p.n);
  const int64_t steps = (p.k + kStepK - 1) / kStepK;
  const auto start_step = [&](int64_t step) {
    unsigned char* const stage = shared + step % kStages * kStageBytes;
    if (step < steps) {
      start_bytes(stage, p.input, p.m, p.k, params.input_chunks, tile.m0, step * kStepK);
      start_bytes(stage + kTileBytes, p.other, p.n, p.k, params.other_chunks, tile.n0, step * kStepK);
    }
    ptx::cp_async_commit();  // Empty past the end: a group for each step keeps the count.
  };

  S sums[kFragmentsM][kFragmentsN][4] = {};
  float totals[kFragmentsM][kFragmentsN][4] = {};
#pragma unroll 1
  for (int64_t step = 0; step < kStages - 1; ++step) start_step(step);
#pragma unroll 1
  for (int64_t step = 0; step < steps; ++step) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();
    start_step(step + kStages - 1);
    const unsigned char* const a_tile = shared + step % kStages * kStageBytes;
    const unsigned char* const b_tile = a_tile + kTileBytes;
#pragma unroll
    for (int k = 0; k < kTileK; k += kPairs) {
      uint32_t a[kFragmentsM][4], b[kFragmentsN / 2][4];
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i) load_a<true>(a[i], a_tile, warp_m + i * kMmaM, k, lane);
#pragma unroll
      for (int j = 0; j < kFragmentsN / 2; ++j) load_b<true>(b[j], b_tile, warp_n + j * 2 * kMmaN, k, lane);
      multiply(params, sums, a, b);
    }
    if constexpr (kFloat) {
      if ((step + 1) * kStepK % kScaleBlock == 0 || step + 1 == steps) {
        promote(params, sums, totals, tile.m0 + lane_m, tile.n0 + lane_n, step * kStepK / kScaleBlock);
      }
    }
  }
  // As in gemm_mma, the sums go through shared memory: neighbouring threads then store neighbouring elements, and the
  // epilogue is in the code once.
  __syncthreads();
  auto* const staged = reinterpret_cast<float*>(shared);  // (kTileRows, kStagedColumns)
#pragma unroll
  for (int i = 0; i < kFragmentsM; ++i) {
#pragma unroll
    for (int j = 0; j < kFragmentsN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = lane_m + i * kMmaM + e / 2 * 8, col = lane_n + j * kMmaN + e % 2;
        staged[row * kStagedColumns + col] = kFloat ? totals[i][j][e] : static_cast<float>(sums[i][j][e]);
      }
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kTileRows; i += kThreads) {
    const int64_t row = tile.m0 + i / kTileRows, col = tile.n0 + i % kTileRows;
    if (row >= p.m || col >= p.n) continue;
    const float total = staged[i / kTileRows * kStagedColumns + i % kTileRows];
    store_as(p.output_dtype, p.output, row * p.n + col, finished(p, row, col, total));
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

bool has_chunks(const Rows& operand, int64_t rows) {
  return operand.col_stride == 1 && (rows == 1 || operand.stride[0] % ptx::kCopyBytes == 0) &&
         reinterpret_cast<uintptr_t>(operand.data) % ptx::kCopyBytes == 0;
}

Decoding decoding_of(DType dtype) {
  if (dtype == DType::kFloat8E4M3) return {1, 0x80008000u, 256.0f};
  return {0, 0, 1.0f};
}

}  // namespace

void scaled_mma(const ScaledMatmulParams& params, Stream stream) {
  const int64_t tiles = tiles_of<kTileRows, kTileRows>(params.m, params.n);
  if (tiles == 0) return;
  const ScaledMmaParams p{params, decoding_of(params.input_dtype), decoding_of(params.other_dtype),
                          has_chunks(params.input, params.m), has_chunks(params.other, params.n)};
  const auto kernel = params.input_dtype == DType::kInt8 ? scaled_mma_kernel<int32_t> : scaled_mma_kernel<float>;
  launch("scaled_mma", kernel, {dim3(static_cast<unsigned>(tiles)), dim3(kThreads), stream, kSharedBytes}, p);
}

}  // namespace warpwright::cuda
