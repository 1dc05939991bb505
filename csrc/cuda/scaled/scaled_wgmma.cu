// Product of 8-bit matrices on Hopper's tensor cores (sm_90a): TMA, mbarrier, wgmma.
//
// As in gemm_wgmma a block stays on its multiprocessor and walks the output's tiles, here of 128 x 128; its producer
// has TMA bring the next stages, each of its consumers multiplies 64 of a tile's rows.
//
// A stage is kScaleBlock of k. The tensor cores add 8-bit floats' products up with some 14 bits, so that a stage's sums
// are moved to a second set of registers, times the scales of the block; while one warpgroup does that, the other one's
// products run. int8 sums are exact and stay where they are.

#include <algorithm>
#include <type_traits>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/scaled/epilogue.cuh"
#include "cuda/scaled/scaled_wgmma.cuh"
#include "cuda/tile/box_writer.cuh"
#include "cuda/tile/scheduler.cuh"
#include "cuda/tile/warp_specialised.cuh"
#include "cuda/tile/wgmma_operand.cuh"

namespace warpwright::cuda {
namespace {

constexpr int kTileM = kWgmmaConsumers * ptx::kWgmmaM, kTileN = 128, kTileK = kScaleBlock;
constexpr int kATileBytes = kTileM * kTileK, kBTileBytes = kTileN * kTileK;
constexpr int kBuffersBytes = BoxWriter::kBuffers * BoxWriter::kBytes;  // A consumer's.
using Shared = WgmmaShared<kATileBytes + kBTileBytes, kWgmmaConsumers * kBuffersBytes>;
static_assert(kTileK == kSpanBytes, "a row of a stage is the span that the swizzle permutes");
static_assert(kTileN == kScaleBlock, "one scale of `other` serves a tile where blocks have one");
static_assert(kATileBytes % kPatternBytes == 0 && kBTileBytes % kPatternBytes == 0,
              "swizzled tiles start where the pattern does");

struct ScaledWgmmaParams {
  ptx::TensorMap input, other, output;
  ScaledMatmulParams scaled;
};

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if WARPWRIGHT_SM90A

__device__ __forceinline__ void produce(const ScaledWgmmaParams& p, unsigned char* shared, bool leader) {
  if (!leader) return;
  const ScaledMatmulParams& scaled = p.scaled;
  Shared::Stage stage;
  for (int64_t i = blockIdx.x; i < tiles_of<kTileM, kTileN>(scaled.m, scaled.n); i += gridDim.x) {
    const MatrixTile tile = banded_tile<kTileM, kTileN>(i, scaled.m, scaled.n);
    const int m0 = static_cast<int>(tile.m0), n0 = static_cast<int>(tile.n0);
    for (int k = 0; k < scaled.k; k += kTileK) {
      ptx::Mbarrier* const full = open_stage(Shared::ring(shared), stage, Shared::kStageBytes);
      unsigned char* const a_tile = shared + stage.index * Shared::kStageBytes;
      ptx::tma_load(a_tile, &p.input, full, {k, m0});
      ptx::tma_load(a_tile + kATileBytes, &p.other, full, {k, n0});
      stage.advance();
    }
  }
}

// The scales of a block of k that a consumer's thread needs: read before the products that they are for are waited for.
struct BlockScales {
  float row[2];     // Of the thread's two rows.
  float tile;       // Of all columns, where they share one,
  const float* at;  // else where the first column's lies; null where there is none.

  __device__ __forceinline__ BlockScales(const ScaledMatmulParams& p, int64_t row0, int64_t col0, int64_t block) {
    const Scales& other = p.other_scale;
    const bool shared = other.row_shift != 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row[r] = p.input_scale.by_block && row0 + 8 * r < p.m ? p.input_scale.at(row0 + 8 * r, block) : 1.0f;
    }
    tile = other.by_block && shared ? other.at(col0, block) : 1.0f;
    at = other.by_block && !shared ? other.data + other.offset(col0, block) : nullptr;
  }
};

// totals += sums * scales. `cols`: how many columns there are from the tile's first on.
__device__ __forceinline__ void promote(float (&totals)[kTileN / 2], const float (&sums)[kTileN / 2],
                                        const BlockScales& scales, int64_t row_stride, int64_t cols, int lane) {
#pragma unroll
  for (int pair = 0; pair < kTileN / 8; ++pair) {
    float column[2] = {scales.tile, scales.tile};
    if (scales.at != nullptr) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int col = pair * 8 + lane % 4 * 2 + e;
        if (col < cols) column[e] = scales.at[col * row_stride];
      }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) totals[pair * 4 + e] += sums[pair * 4 + e] * scales.row[e / 2] * column[e % 2];
  }
}

// The way out of a consumer's 64 rows. The loop takes the first columns and turns the rest to the front: the epilogue
// is in the code once, not once for each of a thread's sums.
template <class S>
__device__ __forceinline__ void write_tile(const ScaledWgmmaParams& params, BoxWriter& writer, const MatrixTile& tile,
                                           int64_t row0, int64_t first_row, S (&sums)[kTileN / 2],
                                           float (&totals)[kTileN / 2]) {
  constexpr bool kFloat = std::is_same_v<S, float>;
  constexpr int kParts = BoxWriter::kSide / BoxWriter::kColumns, kValues = BoxWriter::kValues;
  const ScaledMatmulParams& p = params.scaled;
  if constexpr (!kFloat) {
#pragma unroll
    for (int r = 0; r < kTileN / 2; ++r) totals[r] = static_cast<float>(sums[r]);
  }
#pragma unroll 1
  for (int part = 0; part < kTileN / BoxWriter::kColumns; ++part) {
    if (part % kParts == 0) writer.open();
    float values[kValues];
#pragma unroll
    for (int r = 0; r < kValues; ++r) {
      const int64_t row = first_row + r / 2 % 2 * 8;
      const int64_t col = tile.n0 + part * BoxWriter::kColumns + r / 4 * 8 + threadIdx.x % 4 * 2 + r % 2;
      values[r] = row < p.m && col < p.n ? finished(p, row, col, totals[r]) : 0.0f;
    }
    if (p.output_dtype == DType::kFloat16) {
      writer.put<__half>(part % kParts * BoxWriter::kColumns, values);
    } else {
      writer.put<__nv_bfloat16>(part % kParts * BoxWriter::kColumns, values);
    }
#pragma unroll
    for (int r = 0; r + kValues < kTileN / 2; ++r) totals[r] = totals[r + kValues];
    if (part % kParts == kParts - 1) {
      const int64_t col0 = tile.n0 + part / kParts * BoxWriter::kSide;
      writer.close(&params.output, static_cast<int>(row0), static_cast<int>(col0));
    }
  }
}

template <class A, class B>
__device__ __forceinline__ void consume(const ScaledWgmmaParams& params, unsigned char* shared, int consumer) {
  constexpr bool kFloat = ptx::kIsFloat8<A>;
  const ScaledMatmulParams& p = params.scaled;
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup, lane = thread % 32;
  BoxWriter writer{shared + Shared::kBuffersAt + consumer * kBuffersBytes, 1 + consumer, thread};
  const uint64_t a_tiles = operand_descriptor(shared + consumer * ptx::kWgmmaM * kTileK);
  const uint64_t b_tiles = operand_descriptor(shared + kATileBytes);
  auto& ring = Shared::ring(shared);
  Shared::Stage stage;
  ptx::Sum<A> sums[kTileN / 2] = {};
  for (int64_t i = blockIdx.x; i < tiles_of<kTileM, kTileN>(p.m, p.n); i += gridDim.x) {
    const MatrixTile tile = banded_tile<kTileM, kTileN>(i, p.m, p.n);
    const int64_t row0 = tile.m0 + consumer * ptx::kWgmmaM, first_row = row0 + thread / 32 * 16 + lane / 4;
    float totals[kTileN / 2] = {};
    for (int64_t k = 0; k < p.k; k += kTileK) {
      const BlockScales scales(p, first_row, tile.n0, k / kTileK);
      ptx::mbarrier_wait(&ring.full[stage.index], stage.parity);
      const int offset = stage.index * Shared::kStageBytes / 16;
      ptx::wgmma_fence();
#pragma unroll
      for (int part = 0; part < kTileK / ptx::kProductBytes; ++part) {
        ptx::wgmma<A, B, kTileN>(sums, advanced<true>(a_tiles + offset, 0, part),
                                 advanced<true>(b_tiles + offset, 0, part), part > 0 || (!kFloat && k > 0));
      }
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
      ptx::wgmma_registers(sums);
      release_stage(ring, stage.index);
      stage.advance();
      if constexpr (kFloat) promote(totals, sums, scales, p.other_scale.row_stride, p.n - tile.n0, lane);
    }
    write_tile(params, writer, tile, row0, first_row, sums, totals);
  }
  writer.finish();
}

#endif  // WARPWRIGHT_SM90A

// machine code: not sm_90a: empty; signed char>: IGMMA, UTMALDG, STSM, UTMASTG; else: QGMMA, UTMALDG, STSM, UTMASTG
template <class A, class B>
__global__ void __launch_bounds__(kWgmmaThreads, 1) scaled_wgmma_kernel(const __grid_constant__ ScaledWgmmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  specialise_warps(
      Shared::ring(shared), [&](bool leader) { produce(p, shared, leader); },
      [&](int consumer) { consume<A, B>(p, shared, consumer); });
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

ptx::TensorLayout operand_layout(DType dtype, const Rows& rows, int64_t count, int64_t k) {
  return {rows.data, dtype, 2, {k, count}, {rows.col_stride, rows.stride[0]}};
}
ptx::TensorLayout input_layout(const ScaledMatmulParams& p) { return operand_layout(p.input_dtype, p.input, p.m, p.k); }
ptx::TensorLayout other_layout(const ScaledMatmulParams& p) { return operand_layout(p.other_dtype, p.other, p.n, p.k); }
ptx::TensorLayout output_layout(const ScaledMatmulParams& p) {
  return {p.output, p.output_dtype, 2, {p.n, p.m}, {1, p.n}};
}

auto kernel_for(DType input, DType other) {
  if (input == DType::kInt8) return scaled_wgmma_kernel<int8_t, int8_t>;
  if (input == DType::kFloat8E4M3) {
    return other == DType::kFloat8E4M3 ? scaled_wgmma_kernel<__nv_fp8_e4m3, __nv_fp8_e4m3>
                                       : scaled_wgmma_kernel<__nv_fp8_e4m3, __nv_fp8_e5m2>;
  }
  return other == DType::kFloat8E4M3 ? scaled_wgmma_kernel<__nv_fp8_e5m2, __nv_fp8_e4m3>
                                     : scaled_wgmma_kernel<__nv_fp8_e5m2, __nv_fp8_e5m2>;
}

}  // namespace

bool scaled_wgmma_takes(const ScaledMatmulParams& params) {
  constexpr int64_t kMostCoordinate = INT32_MAX - kTileM;
  // float32 is asked for its digits, which the tensor cores' 8-bit sums do not have; and the writer stores 16 bits.
  if (params.output_dtype == DType::kFloat32) return false;
  if (std::max({params.m, params.n, params.k}) > kMostCoordinate) return false;
  for (const auto& layout : {input_layout(params), other_layout(params), output_layout(params)}) {
    if (!ptx::tensor_map_takes(layout)) return false;
  }
  return current_device().capability == 90;
}

void scaled_wgmma(const ScaledMatmulParams& params, Stream stream) {
  const auto map = [](const ptx::TensorLayout& layout, int columns, int rows) {
    return ptx::encode_tiled(layout, {{columns, rows}}, kOperandSwizzle);
  };
  static_assert(BoxWriter::kSwizzle == kOperandSwizzle);
  const ScaledWgmmaParams p{map(input_layout(params), kTileK, kTileM), map(other_layout(params), kTileK, kTileN),
                            map(output_layout(params), BoxWriter::kSide, BoxWriter::kSide), params};
  const int64_t blocks =
      std::min<int64_t>(tiles_of<kTileM, kTileN>(params.m, params.n), current_device().multiprocessors);
  const auto kernel = kernel_for(params.input_dtype, params.other_dtype);
  launch("scaled_wgmma", kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kWgmmaThreads), stream, Shared::kBytes}, p);
}

}  // namespace warpwright::cuda
