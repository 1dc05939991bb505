// Grouped products on Hopper's tensor cores (sm_90a): TMA, mbarrier, wgmma.
//
// A block stays on its multiprocessor and walks as many tiles of 128 x 256 as there can be, whatever the groups' ends;
// every warp finds the group of a tile for itself. The producer has TMA bring the operands' next steps of the inner
// dimension, the consumers multiply 64 of the tile's rows each.
//
// TMA copies whole boxes, and a box may reach beyond its group. Where that is in the rows of the output, the sums of
// the next group's rows are not stored: results leave by way of shared memory and ordinary stores, row by row. Where it
// is in the inner dimension, which the weight's gradient has its tokens in, the consumers put zeros in the place of
// what is not the group's.

#include <algorithm>

#include "cuda/device.h"
#include "cuda/dtype.cuh"
#include "cuda/grouped/grouped_wgmma.cuh"
#include "cuda/launch.h"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/groups.cuh"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/scheduler.cuh"
#include "cuda/tile/warp_specialised.cuh"
#include "cuda/tile/wgmma_mainloop.cuh"

namespace warpwright::cuda {
namespace {

constexpr int kTileM = kWgmmaConsumers * ptx::kWgmmaM, kTileN = 256;
constexpr int kSpan =
    span_of(DType::kFloat16);  // 16-bit elements: a step of the inner dimension, and columns of a box.
constexpr int kATileBytes = kTileM * kSpanBytes, kBTileBytes = kTileN * kSpanBytes;
constexpr int kStagedBytes = ptx::kWgmmaM * kSpan * 4;  // The sums on their way out: a consumer's rows, one span.
using Shared = WgmmaShared<kATileBytes + kBTileBytes, kWgmmaConsumers * kStagedBytes>;
constexpr int64_t kMostCoordinate = INT32_MAX - kTileN;
constexpr int kVector = 8;  // 16-bit elements that are stored at once.
static_assert(kATileBytes % kPatternBytes == 0 && kBTileBytes % kPatternBytes == 0,
              "swizzled tiles start where the pattern does");

struct ForwardParams {
  WgmmaOperand a, b;
  GroupedParams product;
};
struct WeightGradParams {
  WgmmaOperand a, b;
  GroupedWeightGradParams product;
};

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// As many tiles as there can be.
WARPWRIGHT_HOST_DEVICE int64_t most_tiles(const GroupedParams& p) {
  return tiles_of<1, kTileN>(most_row_tiles<kTileM>(p.groups), p.n);
}
WARPWRIGHT_HOST_DEVICE int64_t most_tiles(const GroupedWeightGradParams& p) {
  return p.groups.count * tiles_of<kTileM, kTileN>(p.m, p.n);
}

#if WARPWRIGHT_SM90A

// One tile of the output.
struct Work {
  int a_row, b_row, b_matrix;  // Its operands' first rows; b's matrix.
  int k, k_end;                // The inner dimension: none, where the sums are zero.
  int rows;                    // Of the output, from the tile's first row on; none for no tile.
  int64_t output_row;
  const void* bias;  // The group's, or null.
  Activation activation;
};

__device__ __forceinline__ Work find_work(const GroupedParams& p, int64_t index) {
  const MatrixTile at = banded_tile<1, kTileN>(index, most_row_tiles<kTileM>(p.groups), p.n);
  const RowTile tile = find_row_tile<kTileM>(p.groups, static_cast<int>(at.m0));
  const bool some = tile.group >= 0 && tile.group < p.groups.count;
  const char* const bias = static_cast<const char*>(p.bias);
  return {tile.row0,
          static_cast<int>(at.n0),
          tile.group,
          0,
          some ? static_cast<int>(p.k) : 0,
          tile.end - tile.row0,
          tile.row0,
          some && bias != nullptr ? bias + tile.group * p.n * 2 : nullptr,
          some ? p.activation : Activation::kNone};
}

__device__ __forceinline__ Work find_work(const GroupedWeightGradParams& p, int64_t index) {
  const int64_t tiles = tiles_of<kTileM, kTileN>(p.m, p.n);
  const auto group = static_cast<int>(index / tiles);
  const MatrixTile tile = banded_tile<kTileM, kTileN>(index % tiles, p.m, p.n);
  const RowRange rows = rows_of_group(p.groups, group);
  return {static_cast<int>(tile.m0),       static_cast<int>(tile.n0), 0,       rows.first,       rows.end,
          static_cast<int>(p.m - tile.m0), group * p.m + tile.m0,     nullptr, Activation::kNone};
}

__device__ __forceinline__ void* preact_of(const GroupedParams& p) { return p.preact; }
__device__ __forceinline__ void* preact_of(const GroupedWeightGradParams&) { return nullptr; }

template <class Params>
__device__ __forceinline__ void produce(const Params& p, unsigned char* shared, bool leader) {
  Shared::Stage stage;
  for (int64_t i = blockIdx.x; i < most_tiles(p.product); i += gridDim.x) {
    const Work work = find_work(p.product, i);
    if (!leader || work.rows <= 0) continue;
    for (WgmmaSource from{work.k, {0, 0, work.b_matrix}, 0}; from.k < work.k_end; from.k += kSpan) {
      ptx::Mbarrier* const full = open_stage(Shared::ring(shared), stage, Shared::kStageBytes);
      unsigned char* const a_tile = shared + stage.index * Shared::kStageBytes;
      load_operand<kTileM>(a_tile, p.a, full, work.a_row, from);
      load_operand<kTileN>(a_tile + kATileBytes, p.b, full, work.b_row, from, p.b.batch[2]);
      stage.advance();
    }
  }
}

// Puts zeros in the place of steps [left, kSpan) of the inner dimension, which are lines of the stage's boxes: the
// consumer's own of A, and half of B's.
__device__ __forceinline__ void clear_lines(unsigned char* stage, int consumer, int left) {
  constexpr int kBoxes = kTileN / kBoxRows / kWgmmaConsumers;
  constexpr int kBothConsumers = 1 + kWgmmaConsumers;  // The named barrier behind the ones that each consumer has.
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup;
  unsigned char* const own = stage + consumer * kBoxBytes;
  unsigned char* const half = stage + kATileBytes + consumer * kBoxes * kBoxBytes;
  for (int at = left * kSpanBytes + thread * 16; at < kBoxBytes; at += ptx::kWarpgroup * 16) {
    *reinterpret_cast<uint4*>(own + at) = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kBoxes; ++i) *reinterpret_cast<uint4*>(half + i * kBoxBytes + at) = make_uint4(0, 0, 0, 0);
  }
  ptx::fence_proxy_async();
  ptx::named_barrier_sync(kBothConsumers, kWgmmaConsumers * ptx::kWarpgroup);
}

// The products of a tile, by the warpgroup `consumer`: `steps`, at least one.
template <class T>
__device__ __forceinline__ void multiply_tile(const ForwardParams& p, const Work&, unsigned char* shared, int consumer,
                                              int steps, Shared::Stage& stage, float (&sums)[1][kTileN / 2]) {
  const uint64_t a = operand_descriptor(shared + consumer * kBoxBytes), b = operand_descriptor(shared + kATileBytes);
  if (p.b.along_k) {
    multiply_stages<T, true, true, Shared::kStageBytes>(sums, a, b, Shared::ring(shared), stage, steps);
  } else {
    multiply_stages<T, true, false, Shared::kStageBytes>(sums, a, b, Shared::ring(shared), stage, steps);
  }
}
template <class T>
__device__ __forceinline__ void multiply_tile(const WeightGradParams&, const Work& work, unsigned char* shared,
                                              int consumer, int steps, Shared::Stage& stage,
                                              float (&sums)[1][kTileN / 2]) {
  const uint64_t a = operand_descriptor(shared + consumer * kBoxBytes), b = operand_descriptor(shared + kATileBytes);
  const auto clear = [&](int step) {
    const int left = work.k_end - work.k - step * kSpan;
    if (left < kSpan) clear_lines(shared + stage.index * Shared::kStageBytes, consumer, left);
  };
  multiply_stages<T, false, false, Shared::kStageBytes>(sums, a, b, Shared::ring(shared), stage, steps, 1, Nothing{},
                                                        clear);
}

// Where element (row, col) of a consumer's staged sums lies: neighbouring rows are in different banks.
__device__ __forceinline__ int staged_at(int row, int col) {
  return row * kSpan + (col / kVector ^ row % 8) * kVector + col % kVector;
}

// Stages kSpan columns of a wgmma's result. Registers have no index: each box has its own code, and one is run.
__device__ __forceinline__ void stage_box(float* staged, const float (&sums)[kTileN / 2], int box, int thread) {
  const int lane = thread % 32;
#pragma unroll
  for (int b = 0; b < kTileN / kSpan; ++b) {
    if (b != box) continue;
#pragma unroll
    for (int r = 0; r < kSpan / 2; r += 2) {
      const int row = thread / 32 * 16 + r / 2 % 2 * 8 + lane / 4, col = r / 4 * 8 + lane % 4 * 2,
                i = b * kSpan / 2 + r;
      *reinterpret_cast<float2*>(staged + staged_at(row, col)) = make_float2(sums[i], sums[i + 1]);
    }
  }
}

// Stores a consumer's staged sums as kSpan columns from `col0` on, as far as they belong to the tile.
template <class T>
__device__ __forceinline__ void store_staged(const Work& work, const float* staged, int first_row, int col0, int64_t n,
                                             void* output, void* preact, int thread) {
  constexpr int kVectors = kSpan / kVector;
#pragma unroll 1
  for (int i = thread; i < ptx::kWgmmaM * kVectors; i += ptx::kWarpgroup) {
    const int row = i / kVectors, col = i % kVectors * kVector;
    if (first_row + row >= work.rows || col0 + col >= n) continue;
    const float* const sums = staged + staged_at(row, col);
    const int64_t at = (work.output_row + first_row + row) * n + col0 + col;
    Pack<T, kVector> before, after;
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      float value = work.k < work.k_end ? sums[e] : 0.0f;
      if (work.bias != nullptr) value += to_float(static_cast<const T*>(work.bias)[col0 + col + e]);
      before.values[e] = from_float<T>(value);
      after.values[e] = from_float<T>(activate(work.activation, value));
    }
    if (preact != nullptr) store_whole(static_cast<T*>(preact) + at, before);
    store_whole(static_cast<T*>(output) + at, after);
  }
}

template <class T, class Params>
__device__ __forceinline__ void consume(const Params& p, unsigned char* shared, int consumer) {
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup;
  auto* const staged = reinterpret_cast<float*>(shared + Shared::kBuffersAt + consumer * kStagedBytes);
  Shared::Stage stage;
  float sums[1][kTileN / 2];
  for (int64_t i = blockIdx.x; i < most_tiles(p.product); i += gridDim.x) {
    const Work work = find_work(p.product, i);
    if (work.rows <= 0) continue;
    const int steps = (work.k_end - work.k + kSpan - 1) / kSpan;
    if (steps > 0) multiply_tile<T>(p, work, shared, consumer, steps, stage, sums);

#pragma unroll 1
    for (int box = 0; box < kTileN / kSpan; ++box) {
      const int col0 = work.b_row + box * kSpan;
      if (col0 >= p.product.n) break;
      ptx::named_barrier_sync(1 + consumer, ptx::kWarpgroup);  // The box before has been read.
      stage_box(staged, sums[0], box, thread);
      ptx::named_barrier_sync(1 + consumer, ptx::kWarpgroup);
      store_staged<T>(work, staged, consumer * ptx::kWgmmaM, col0, p.product.n, p.product.output, preact_of(p.product),
                      thread);
    }
  }
}

template <class T, class Params>
__device__ __forceinline__ void run_block(const Params& p, unsigned char* shared) {
  constexpr int kRegisters = 40;  // A producer that looks for groups has more to remember.
  specialise_warps<kRegisters>(
      Shared::ring(shared), [&](bool leader) { produce(p, shared, leader); },
      [&](int consumer) { consume<T>(p, shared, consumer); });
}

#endif  // WARPWRIGHT_SM90A

// machine code: sm_90a: HGMMA, UTMALDG, STG.128; else: empty
template <class T>
__global__ void __launch_bounds__(kWgmmaThreads, 1) grouped_wgmma_kernel(const __grid_constant__ ForwardParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  run_block<T>(p, shared);
#endif
}

// machine code: sm_90a: HGMMA, UTMALDG, STG.128; else: empty
template <class T>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    grouped_weight_grad_wgmma_kernel(const __grid_constant__ WeightGradParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  run_block<T>(p, shared);
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

using ptx::TensorLayout;

TensorLayout a_of(const GroupedParams& p) { return {p.a, p.dtype, 2, {p.k, p.groups.rows}, {1, p.a_row}}; }
TensorLayout a_of(const GroupedWeightGradParams& p) { return {p.a, p.dtype, 2, {p.m, p.groups.rows}, {1, p.a_row}}; }

TensorLayout b_of(const GroupedParams& p) {  // A batch of matrices, as load_operand wants it.
  const int64_t groups = p.groups.count, group = p.b_group;
  if (p.b_col == 1) return {p.b, p.dtype, 5, {p.k, p.n, groups, 1, 1}, {1, p.b_row, group, group, group}};
  return {p.b, p.dtype, 5, {p.n, p.k, groups, 1, 1}, {p.b_row, p.b_col, group, group, group}};
}
TensorLayout b_of(const GroupedWeightGradParams& p) { return {p.b, p.dtype, 2, {p.n, p.groups.rows}, {1, p.b_row}}; }

template <class Params>
bool takes(const Params& p, bool whatever_the_rows) {
  const bool half = p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16;
  if (!half || p.a_col != 1 || p.n % kVector != 0 || std::max<int64_t>(p.n, p.groups.rows) > kMostCoordinate)
    return false;
  if (!ptx::tensor_map_takes(a_of(p)) || !ptx::tensor_map_takes(b_of(p))) return false;
  const Device device = current_device();
  // As gemm_wgmma: where its tiles leave every other multiprocessor idle, those of grouped_mma leave none.
  return device.capability == 90 && (whatever_the_rows || 2 * most_tiles(p) >= device.multiprocessors);
}

template <class Params, class Product>
void run(const char* name, void (*kernel)(Params), const Params& params, const Product& product, Stream stream) {
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(most_tiles(product), current_device().multiprocessors));
  launch(name, kernel, {dim3(blocks), dim3(kWgmmaThreads), stream, Shared::kBytes}, params);
}

}  // namespace

bool grouped_wgmma_takes(const GroupedParams& params) {
  return params.k <= kMostCoordinate && takes(params, params.batch_invariant);
}

void grouped_wgmma(const GroupedParams& params, Stream stream) {
  ForwardParams p{wgmma_operand(a_of(params), true, kTileM), wgmma_operand(b_of(params), params.b_col == 1, kTileN),
                  params};
  p.b.batch[2] = true;                                                                // A matrix for each group.
  const auto kernel = params.dtype == DType::kFloat16 ? grouped_wgmma_kernel<__half>  //
                                                      : grouped_wgmma_kernel<__nv_bfloat16>;
  run("grouped_wgmma", kernel, p, params, stream);
}

bool grouped_weight_grad_wgmma_takes(const GroupedWeightGradParams& params) {
  return params.b_col == 1 && params.m <= kMostCoordinate && takes(params, false);
}

void grouped_weight_grad_wgmma(const GroupedWeightGradParams& params, Stream stream) {
  const WeightGradParams p{wgmma_operand(a_of(params), false, kTileM), wgmma_operand(b_of(params), false, kTileN),
                           params};
  const auto kernel = params.dtype == DType::kFloat16 ? grouped_weight_grad_wgmma_kernel<__half>
                                                      : grouped_weight_grad_wgmma_kernel<__nv_bfloat16>;
  run("grouped_weight_grad_wgmma", kernel, p, params, stream);
}

}  // namespace warpwright::cuda
