// Two products of one input and the gate between them on Hopper's tensor cores (sm_90a): TMA, mbarrier, wgmma.
//
// A block stays on its multiprocessor and walks the output's tiles of 128 x 128. A stage holds a span of K of the
// input's rows and, one after the other, of both weights' rows: to wgmma these are one operand of 256 rows, so that a
// consumer's registers hold 64 rows of both products, and each thread both sums of its elements.
//
// The epilogue takes 64 columns at a time: registers, stmatrix to one of two buffers, a TMA store that runs while the
// other buffer is filled. TMA drops what lies outside the matrix, and reads zeros there.

#include <algorithm>

#include "cuda/device.h"
#include "cuda/gated/epilogue.cuh"
#include "cuda/gated/gated_wgmma.cuh"
#include "cuda/launch.h"
#include "cuda/tile/box_writer.cuh"
#include "cuda/tile/scheduler.cuh"
#include "cuda/tile/warp_specialised.cuh"
#include "cuda/tile/wgmma_mainloop.cuh"

namespace warpwright::cuda {
namespace {

constexpr int kTileM = kWgmmaConsumers * ptx::kWgmmaM, kTileN = 128, kBoth = 2 * kTileN;
constexpr int kSpan = span_of(DType::kFloat16);  // 16-bit elements: a step along K.
constexpr int kInputBytes = kTileM * kSpanBytes, kWeightBytes = kTileN * kSpanBytes;
constexpr int kBuffersBytes = BoxWriter::kBuffers * BoxWriter::kBytes;  // A consumer's.
using Shared = WgmmaShared<kInputBytes + 2 * kWeightBytes, kWgmmaConsumers * kBuffersBytes>;
static_assert(kSpan % ptx::kWgmmaK<__half> == 0 && kBoth <= 256, "what a wgmma takes");
static_assert(kInputBytes % kPatternBytes == 0 && kWeightBytes % kPatternBytes == 0,
              "swizzled tiles start where the pattern does");

struct GatedWgmmaParams {
  WgmmaOperand input, gate_weight, up_weight;  // The weights lie alike.
  ptx::TensorMap output, gate, up;
  GatedParams gated;
};

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if WARPWRIGHT_SM90A

__device__ __forceinline__ void produce(const GatedWgmmaParams& p, unsigned char* shared, bool leader) {
  if (!leader) return;
  const GatedParams& gated = p.gated;
  Shared::Stage stage;
  for (int64_t i = blockIdx.x; i < tiles_of<kTileM, kTileN>(gated.m, gated.n); i += gridDim.x) {
    const MatrixTile tile = banded_tile<kTileM, kTileN>(i, gated.m, gated.n);
    const int m0 = static_cast<int>(tile.m0), n0 = static_cast<int>(tile.n0);
    for (WgmmaSource from{}; from.k < gated.k; from.k += kSpan) {
      ptx::Mbarrier* const full = open_stage(Shared::ring(shared), stage, Shared::kStageBytes);
      unsigned char* const to = shared + stage.index * Shared::kStageBytes;
      load_operand<kTileM>(to, p.input, full, m0, from);
      load_operand<kTileN>(to + kInputBytes, p.gate_weight, full, n0, from);
      load_operand<kTileN>(to + kInputBytes + kWeightBytes, p.up_weight, full, n0, from);
      stage.advance();
    }
  }
}

// Gates a box of columns from `col0` on and stores what is to be stored of them.
template <class T>
__device__ __forceinline__ void finish_box(const GatedWgmmaParams& p, BoxWriter& writer, int row0, int col0,
                                           const float* gate_sums, const float* up_sums) {
  constexpr int kValues = BoxWriter::kSide / 2;
  const GatedParams& gated = p.gated;
  float gate[kValues], up[kValues];
#pragma unroll
  for (int r = 0; r < kValues; ++r) {
    const int col = col0 + r / 4 * 8 + writer.thread % 4 * 2 + r % 2;
    gate[r] = gate_sums[r], up[r] = up_sums[r];
    if (col < gated.n) add_biases<T>(gated, col, gate[r], up[r]);
  }
  const bool keep = gated.gate != nullptr;
  const bool before = needs_preact(gated.activation);
  if (keep && before) writer.store<T>(&p.gate, row0, col0, gate);
#pragma unroll
  for (int r = 0; r < kValues; ++r) gate[r] = activate(gated.activation, gate[r]);
  if (keep && !before) writer.store<T>(&p.gate, row0, col0, gate);
  if (keep) writer.store<T>(&p.up, row0, col0, up);
#pragma unroll
  for (int r = 0; r < kValues; ++r) gate[r] *= up[r];
  writer.store<T>(&p.output, row0, col0, gate);
}

template <class T>
__device__ __forceinline__ void consume(const GatedWgmmaParams& p, unsigned char* shared, int consumer) {
  const GatedParams& gated = p.gated;
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup;
  BoxWriter writer{shared + Shared::kBuffersAt + consumer * kBuffersBytes, 1 + consumer, thread};
  const uint64_t rows = operand_descriptor(shared + consumer * kBoxBytes);
  const uint64_t weights = operand_descriptor(shared + kInputBytes);
  const int steps = static_cast<int>((gated.k + kSpan - 1) / kSpan);
  Shared::Stage stage;
  float sums[1][kBoth / 2];  // The gate's 64 x kTileN, then those of what it gates.
  for (int64_t i = blockIdx.x; i < tiles_of<kTileM, kTileN>(gated.m, gated.n); i += gridDim.x) {
    const MatrixTile tile = banded_tile<kTileM, kTileN>(i, gated.m, gated.n);
    with_layouts<kBoth>(p.input.along_k, p.gate_weight.along_k, [&]<bool kAAlongK, bool kBAlongK>() {
      multiply_stages<T, kAAlongK, kBAlongK, Shared::kStageBytes>(sums, rows, weights, Shared::ring(shared), stage,
                                                                  steps);
    });
    const int row0 = static_cast<int>(tile.m0) + consumer * ptx::kWgmmaM;
#pragma unroll
    for (int box = 0; box < kTileN / BoxWriter::kSide; ++box) {
      const float* const gate = sums[0] + box * BoxWriter::kSide / 2;
      finish_box<T>(p, writer, row0, static_cast<int>(tile.n0) + box * BoxWriter::kSide, gate, gate + kTileN / 2);
    }
  }
  writer.finish();
}

#endif  // WARPWRIGHT_SM90A

// machine code: sm_90a: HGMMA, UTMALDG, STSM, UTMASTG; else: empty
template <class T>
__global__ void __launch_bounds__(kWgmmaThreads, 1) gated_wgmma_kernel(const __grid_constant__ GatedWgmmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  specialise_warps(
      Shared::ring(shared), [&](bool leader) { produce(p, shared, leader); },
      [&](int consumer) { consume<T>(p, shared, consumer); });
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

struct Matrix {
  ptx::TensorLayout layout;
  bool along_k;  // Or, of an output, along a row.
};

Matrix matrix(DType dtype, const void* data, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
  if (col_stride == 1) return {{data, dtype, 2, {cols, rows}, {1, row_stride}}, true};
  return {{data, dtype, 2, {rows, cols}, {row_stride, col_stride}}, false};
}

struct Matrices {
  Matrix input, gate_weight, up_weight, output, gate, up;  // Without saved factors the last two are the output.
};

Matrices matrices_of(const GatedParams& p) {
  const auto result = [&](const void* data) {
    return matrix(p.dtype, data == nullptr ? p.output : data, p.m, p.n, p.n, 1);
  };
  return {matrix(p.dtype, p.input, p.m, p.k, p.input_row, p.input_col),
          matrix(p.dtype, p.gate_weight, p.n, p.k, p.gate_row, p.gate_col),
          matrix(p.dtype, p.up_weight, p.n, p.k, p.up_row, p.up_col),
          result(p.output),
          result(p.gate),
          result(p.up)};
}

ptx::TensorMap stored_map(const Matrix& matrix) {
  return ptx::encode_tiled(matrix.layout, {{BoxWriter::kSide, BoxWriter::kSide}}, BoxWriter::kSwizzle);
}
WgmmaOperand operand_of(const Matrix& matrix, int rows) { return wgmma_operand(matrix.layout, matrix.along_k, rows); }

}  // namespace

bool gated_wgmma_takes(const GatedParams& params) {
  constexpr int64_t kMostCoordinate = INT32_MAX - kTileN;
  if (params.dtype != DType::kFloat16 && params.dtype != DType::kBFloat16) return false;
  if (std::max({params.m, params.n, params.k}) > kMostCoordinate) return false;
  const Matrices all = matrices_of(params);
  if (all.gate_weight.along_k != all.up_weight.along_k) return false;
  for (const Matrix& m : {all.input, all.gate_weight, all.up_weight, all.output, all.gate, all.up}) {
    if (!ptx::tensor_map_takes(m.layout)) return false;
  }
  const Device device = current_device();
  // Where these tiles leave every other multiprocessor idle, those of gated_mma, half as large, leave none. How many
  // there are depends on the number of rows, which must not choose the kernel where a row may not notice the others.
  const bool enough = 2 * tiles_of<kTileM, kTileN>(params.m, params.n) >= device.multiprocessors;
  return device.capability == 90 && (enough || params.batch_invariant);
}

void gated_wgmma(const GatedParams& params, Stream stream) {
  const Matrices all = matrices_of(params);
  const GatedWgmmaParams p{operand_of(all.input, kTileM),
                           operand_of(all.gate_weight, kTileN),
                           operand_of(all.up_weight, kTileN),
                           stored_map(all.output),
                           stored_map(all.gate),
                           stored_map(all.up),
                           params};
  const int64_t blocks =
      std::min<int64_t>(tiles_of<kTileM, kTileN>(params.m, params.n), current_device().multiprocessors);
  const auto kernel = params.dtype == DType::kFloat16 ? gated_wgmma_kernel<__half> : gated_wgmma_kernel<__nv_bfloat16>;
  launch("gated_wgmma", kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kWgmmaThreads), stream, Shared::kBytes}, p);
}

}  // namespace warpwright::cuda
