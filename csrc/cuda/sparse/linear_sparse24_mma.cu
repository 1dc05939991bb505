// linear on a 2:4 sparse weight, on the tensor cores (sm_80 and later): cp.async, ldmatrix, mma.sp.
//
// The sparse operand of mma.sp is A, so the product is computed transposed: a block of 8 warps takes 128 features of
// the output, the weight's rows, by 128 rows of it, the input's. A step of kStepK brings, of the weight, the 32
// elements of each row that are kept and the 8 bytes that say where they were; of the input, two tiles of 32. Copies
// and products overlap as in matmul/gemm_mma.cu.
//
// mma.sp wants the metadata of 8 kept elements of row g in the low half of a register and those of row g + 8 in the
// high half, from one lane of a quad for the first 8 and from the next lane for the others; a selector says which two
// lanes of the four give theirs. So lane t of a quad holds the t-th 16 bits of a row's 8 bytes, and the step's two
// products select one pair of lanes each: two loads serve 64 columns of 16 rows.

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/sparse/linear_sparse24_mma.cuh"
#include "cuda/tile/mma_operand.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// Two blocks' stages fit the shared memory of an A100, and one block's that of every later GPU.
constexpr int kThreads = 256, kStages = 3;
constexpr int kStepK = 2 * kTileK;  // Of which the weight keeps kTileK.
constexpr int kMetadataBytes = kStepK / 8;
constexpr int kWarpsN = 2, kWarpsM = 4;
constexpr int kWarpN = kTileRows / kWarpsN, kWarpM = kTileRows / kWarpsM;  // A warp's part: 64 features by 32 rows.
constexpr int kMmaRows = 16, kMmaCols = 8;
constexpr int kInputAt = kTileBytes, kMetadataAt = 3 * kTileBytes;
constexpr int kStageBytes = kMetadataAt + kTileRows * kMetadataBytes;
// The sums on their way out, (rows of the output, features): with four more features the elements that a warp writes at
// once lie in different banks.
constexpr int kStagedColumns = kTileRows + 4, kStagedBytes = kTileRows * kStagedColumns * 4;
constexpr int kSharedBytes = std::max(kStages * kStageBytes, kStagedBytes);
static_assert(kWarpsN * kWarpsM * 32 == kThreads);
static_assert(kWarpN % kMmaRows == 0 && kWarpM % (2 * kMmaCols) == 0);
static_assert(kTileK == 2 * kMmaRows, "a step is two products, one for each pair of lanes that gives metadata");

// Starts copying the metadata of the weight's rows from n0 on, of the columns of `step`. Past the last row it is that
// row's again: zeros are no metadata.
__device__ __forceinline__ void start_metadata(unsigned char* tile, const Sparse24& weight, int64_t rows, int64_t n0,
                                               int64_t step) {
  if (threadIdx.x >= kTileRows) return;
  const int64_t row = n0 + threadIdx.x < rows ? n0 + threadIdx.x : rows - 1;
  const uint8_t* const from = weight.metadata + row * weight.metadata_row + step * kMetadataBytes;
  ptx::cp_async<kMetadataBytes>(tile + threadIdx.x * kMetadataBytes, from, kMetadataBytes);
}

// The register that mma.sp takes for rows [row, row + 16).
__device__ __forceinline__ uint32_t load_metadata(const unsigned char* tile, int row, int lane) {
  const auto* const low = reinterpret_cast<const uint16_t*>(tile + (row + lane / 4) * kMetadataBytes) + lane % 4;
  return low[0] | static_cast<uint32_t>(low[8 * kMetadataBytes / 2]) << 16;
}

// machine code: HMMA.SP.16832.F32, LDSM.4, LDGSTS.128, LDGSTS.64
template <class T, bool kInputAlongK>
__global__ void __launch_bounds__(kThreads) linear_sparse24_mma_kernel(const LinearSparse24Params p) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const GemmParams& gemm = p.gemm;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_n = warp / kWarpsM * kWarpN, warp_m = warp % kWarpsM * kWarpM;
  const MatrixTile tile = banded_tile<kTileRows, kTileRows>(blockIdx.x, gemm.m, gemm.n);
  const MmaOperand values{static_cast<const uint16_t*>(p.weight.values), p.weight.values_row, gemm.n, gemm.k / 2};
  const MmaOperand input{static_cast<const uint16_t*>(gemm.a), kInputAlongK ? gemm.a_row : gemm.a_col, gemm.m, gemm.k};
  const int64_t steps = gemm.k / kStepK;
  const auto start_step = [&](int64_t step) {
    unsigned char* const stage = shared + step % kStages * kStageBytes;
    if (step < steps) {
      start_tile<true, kThreads>(stage, values, tile.n0, step * kTileK);
      start_tile<kInputAlongK, kThreads>(stage + kInputAt, input, tile.m0, step * kStepK);
      start_tile<kInputAlongK, kThreads>(stage + kInputAt + kTileBytes, input, tile.m0, step * kStepK + kTileK);
      start_metadata(stage + kMetadataAt, p.weight, gemm.n, tile.n0, step);
    }
    ptx::cp_async_commit();  // Empty past the end: a group for each step keeps the count.
  };

  float sums[kWarpN / kMmaRows][kWarpM / kMmaCols][4] = {};
  for (int64_t step = 0; step < kStages - 1; ++step) start_step(step);
  for (int64_t step = 0; step < steps; ++step) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();
    start_step(step + kStages - 1);
    const unsigned char* const stage = shared + step % kStages * kStageBytes;
    uint32_t metadata[kWarpN / kMmaRows];
#pragma unroll
    for (int i = 0; i < kWarpN / kMmaRows; ++i) {
      metadata[i] = load_metadata(stage + kMetadataAt, warp_n + i * kMmaRows, lane);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned char* const input_tile = stage + kInputAt + half * kTileBytes;
      uint32_t a[kWarpN / kMmaRows][4], low[kWarpM / kMmaCols / 2][4], high[kWarpM / kMmaCols / 2][4];
#pragma unroll
      for (int i = 0; i < kWarpN / kMmaRows; ++i) {
        load_a<true>(a[i], stage, warp_n + i * kMmaRows, half * kTileK / 2, lane);
      }
#pragma unroll
      for (int j = 0; j < kWarpM / kMmaCols / 2; ++j) {
        load_b<kInputAlongK>(low[j], input_tile, warp_m + j * 2 * kMmaCols, 0, lane);
        load_b<kInputAlongK>(high[j], input_tile, warp_m + j * 2 * kMmaCols, kTileK / 2, lane);
      }
#pragma unroll
      for (int i = 0; i < kWarpN / kMmaRows; ++i) {
#pragma unroll
        for (int j = 0; j < kWarpM / kMmaCols; ++j) {
          const int at = j % 2 * 2;
          const uint32_t b[4] = {low[j / 2][at], low[j / 2][at + 1], high[j / 2][at], high[j / 2][at + 1]};
          if (half == 0) {
            ptx::mma_sp_m16n8k32<T, 0>(sums[i][j], a[i], b, metadata[i]);
          } else {
            ptx::mma_sp_m16n8k32<T, 1>(sums[i][j], a[i], b, metadata[i]);
          }
        }
      }
    }
  }
  // The sums go through shared memory, where they are transposed: neighbouring threads then store neighbouring
  // features. The last step waited for the last tiles: nothing is on its way.
  __syncthreads();
  auto* const staged = reinterpret_cast<float*>(shared);  // (kTileRows, kStagedColumns)
#pragma unroll
  for (int i = 0; i < kWarpN / kMmaRows; ++i) {
#pragma unroll
    for (int j = 0; j < kWarpM / kMmaCols; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int col = warp_n + i * kMmaRows + e / 2 * 8 + lane / 4,
                  row = warp_m + j * kMmaCols + lane % 4 * 2 + e % 2;
        staged[row * kStagedColumns + col] = sums[i][j][e];
      }
    }
  }
  __syncthreads();
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kTileRows; i += kThreads) {
    const int row = i / kTileRows, col = i % kTileRows;
    if (tile.m0 + row < gemm.m && tile.n0 + col < gemm.n) {
      store_element<T>(gemm, 0, tile.m0 + row, tile.n0 + col, staged[row * kStagedColumns + col]);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

// Whether each line of a matrix starts at a multiple of `bytes`; `ld` counts elements of `element` bytes.
bool starts_at(const void* data, int64_t ld, int element, int bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0 && ld * element % bytes == 0;
}

}  // namespace

bool linear_sparse24_mma_takes(const LinearSparse24Params& params) {
  const GemmParams& gemm = params.gemm;
  const Sparse24& weight = params.weight;
  const bool half = gemm.dtype == DType::kFloat16 || gemm.dtype == DType::kBFloat16;
  return half && gemm.k % kStepK == 0 && weight.values_col == 1 && weight.metadata_col == 1 &&
         (gemm.a_row == 1 || gemm.a_col == 1) &&
         starts_at(gemm.a, gemm.a_col == 1 ? gemm.a_row : gemm.a_col, 2, ptx::kCopyBytes) &&
         starts_at(weight.values, weight.values_row, 2, ptx::kCopyBytes) &&
         starts_at(weight.metadata, weight.metadata_row, 1, kMetadataBytes);
}

void linear_sparse24_mma(const LinearSparse24Params& params, Stream stream) {
  const int64_t tiles = tiles_of<kTileRows, kTileRows>(params.gemm.m, params.gemm.n);
  if (tiles == 0) return;
  const auto kernel_for = [&](auto tag) {
    using T = decltype(tag);
    return params.gemm.a_col == 1 ? linear_sparse24_mma_kernel<T, true> : linear_sparse24_mma_kernel<T, false>;
  };
  const auto kernel = params.gemm.dtype == DType::kFloat16 ? kernel_for(__half{}) : kernel_for(__nv_bfloat16{});
  const LaunchConfig config{dim3(static_cast<unsigned>(tiles)), dim3(kThreads), stream, kSharedBytes};
  launch("linear_sparse24_mma", kernel, config, params);
}

}  // namespace warpwright::cuda
