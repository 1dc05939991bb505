// Matrix product on the tensor cores (sm_80 and later): cp.async, ldmatrix, mma.sync.
//
// A block of 8 warps computes a 128 x 128 tile of the output. kStages tiles of each operand are on their way to shared
// memory or in it: while the tensor cores work on one, the next ones arrive. The only barrier of a step says both that
// the step's tiles have come for all threads, and that all are done with those of the step before, whose place the next
// copies take.

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/matmul/gemm_mma.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/tile/mma_operand.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256, kStages = 4;
constexpr int kWarpsM = 2, kWarpsN = 4;
constexpr int kWarpM = kTileRows / kWarpsM, kWarpN = kTileRows / kWarpsN;  // A warp's part of the tile: 64 x 32.
constexpr int kMmaM = 16, kMmaN = 8, kMmaK = 16;
constexpr int kStageBytes = 2 * kTileBytes;
// The sums on their way out: eight more columns put the rows that half a warp writes at once in different banks.
constexpr int kStagedColumns = kTileRows + 8, kStagedBytes = kTileRows * kStagedColumns * 4;
constexpr int kSharedBytes = std::max(kStages * kStageBytes, kStagedBytes);
static_assert(kWarpsM * kWarpsN * 32 == kThreads);
static_assert(kWarpM % kMmaM == 0 && kWarpN % (2 * kMmaN) == 0 && kTileK % kMmaK == 0);

// machine code: HMMA.16816.F32, LDSM.4, LDGSTS.128
template <class T, bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(kThreads) gemm_mma_kernel(const GemmParams p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_m = warp / kWarpsN * kWarpM, warp_n = warp % kWarpsN * kWarpN;
  const MatrixTile tile = banded_tile<kTileRows, kTileRows>(blockIdx.x, p.m, p.n);
  const MmaOperand a{static_cast<const uint16_t*>(p.a), kAAlongK ? p.a_row : p.a_col, p.m, p.k};
  const MmaOperand b{static_cast<const uint16_t*>(p.b), kBAlongK ? p.b_row : p.b_col, p.n, p.k};
  const int64_t steps = (p.k + kTileK - 1) / kTileK;
  const auto start_step = [&](int64_t step) {
    unsigned char* const stage = shared + step % kStages * kStageBytes;
    if (step < steps) {
      start_tile<kAAlongK, kThreads>(stage, a, tile.m0, step * kTileK);
      start_tile<kBAlongK, kThreads>(stage + kTileBytes, b, tile.n0, step * kTileK);
    }
    ptx::cp_async_commit();  // Empty past the end: a group for each step keeps the count.
  };

  float sums[kWarpM / kMmaM][kWarpN / kMmaN][4] = {};
  for (int64_t step = 0; step < kStages - 1; ++step) start_step(step);
  for (int64_t step = 0; step < steps; ++step) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();
    start_step(step + kStages - 1);
    const unsigned char* const a_tile = shared + step % kStages * kStageBytes;
    const unsigned char* const b_tile = a_tile + kTileBytes;
#pragma unroll
    for (int k = 0; k < kTileK; k += kMmaK) {
      uint32_t a_part[kWarpM / kMmaM][4], b_part[kWarpN / kMmaN / 2][4];
#pragma unroll
      for (int i = 0; i < kWarpM / kMmaM; ++i) load_a<kAAlongK>(a_part[i], a_tile, warp_m + i * kMmaM, k, lane);
#pragma unroll
      for (int j = 0; j < kWarpN / kMmaN / 2; ++j) {
        load_b<kBAlongK>(b_part[j], b_tile, warp_n + j * 2 * kMmaN, k, lane);
      }
#pragma unroll
      for (int i = 0; i < kWarpM / kMmaM; ++i) {
#pragma unroll
        for (int j = 0; j < kWarpN / kMmaN; ++j) {
          const uint32_t column[2] = {b_part[j / 2][j % 2 * 2], b_part[j / 2][j % 2 * 2 + 1]};
          ptx::mma_m16n8k16<T>(sums[i][j], a_part[i], column);
        }
      }
    }
  }
  // The sums go through shared memory: neighbouring threads then store neighbouring elements, and the epilogue is in
  // the code once, not once for each of a thread's sums. The last step waited for the last tiles: nothing is on its
  // way.
  __syncthreads();
  auto* const staged = reinterpret_cast<float*>(shared);  // (kTileRows, kStagedColumns)
#pragma unroll
  for (int i = 0; i < kWarpM / kMmaM; ++i) {
#pragma unroll
    for (int j = 0; j < kWarpN / kMmaN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_m + i * kMmaM + e / 2 * 8 + lane / 4, col = warp_n + j * kMmaN + lane % 4 * 2 + e % 2;
        staged[row * kStagedColumns + col] = sums[i][j][e];
      }
    }
  }
  __syncthreads();
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kTileRows; i += kThreads) {
    const int row = i / kTileRows, col = i % kTileRows;
    if (tile.m0 + row < p.m && tile.n0 + col < p.n) {
      store_element<T>(p, tile.m0 + row, tile.n0 + col, staged[row * kStagedColumns + col]);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

bool takes(const void* data, int64_t row, int64_t col) {
  const int64_t ld = col == 1 ? row : col;
  return (row == 1 || col == 1) && ld % kChunk == 0 && reinterpret_cast<uintptr_t>(data) % ptx::kCopyBytes == 0;
}

template <class T>
auto kernel_for(bool a_along_k, bool b_along_k) {
  if (a_along_k) return b_along_k ? gemm_mma_kernel<T, true, true> : gemm_mma_kernel<T, true, false>;
  return b_along_k ? gemm_mma_kernel<T, false, true> : gemm_mma_kernel<T, false, false>;
}

}  // namespace

bool gemm_mma_takes(const GemmParams& params) {
  const bool half = params.dtype == DType::kFloat16 || params.dtype == DType::kBFloat16;
  return half && takes(params.a, params.a_row, params.a_col) && takes(params.b, params.b_row, params.b_col);
}

void gemm_mma(const GemmParams& params, Stream stream) {
  const int64_t tiles = tiles_of<kTileRows, kTileRows>(params.m, params.n);
  if (tiles == 0) return;
  const bool a_along_k = params.a_col == 1, b_along_k = params.b_col == 1;
  const auto kernel = params.dtype == DType::kFloat16 ? kernel_for<__half>(a_along_k, b_along_k)
                                                      : kernel_for<__nv_bfloat16>(a_along_k, b_along_k);
  launch("gemm_mma", kernel, {dim3(static_cast<unsigned>(tiles)), dim3(kThreads), stream, kSharedBytes}, params);
}

}  // namespace warpwright::cuda
