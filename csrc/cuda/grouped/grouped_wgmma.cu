// Grouped products on Hopper's tensor cores (sm_90a): TMA, mbarrier, wgmma.
//
// A block of three warpgroups stays on its multiprocessor and walks as many tiles of 128 x 256 as there can be,
// whatever the groups' ends; every warp finds the group of a tile for itself. The first warpgroup's first warp, the
// producer, has TMA bring the operands' next kStages steps of the inner dimension to shared memory; the other two
// warpgroups, the consumers, multiply 64 of the tile's rows each. A stage's `full` barrier says that its bytes have
// come, its `empty` barrier that every consumer warp is done with it.
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
#include "cuda/ptx/elect.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/groups.cuh"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

using ptx::Mbarrier, ptx::TensorMap;

constexpr int kTileM = 128, kTileN = 256;
constexpr int kSpan = 64;      // 16-bit elements in the 128 bytes that the swizzle permutes.
constexpr int kTileK = kSpan;  // Rows of the operands' tiles are one span where the inner dimension lies together.
constexpr int kConsumers = kTileM / ptx::kWgmmaM;
constexpr int kThreads = ptx::kWarpgroup * (1 + kConsumers);
constexpr int kStages = 4;
constexpr int kATileBytes = kTileM * kTileK * 2, kStageBytes = kATileBytes + kTileN * kTileK * 2;
constexpr int kBoxBytes = kSpan * kSpan * 2;            // 64 lines of 128 bytes.
constexpr int kStagedBytes = ptx::kWgmmaM * kSpan * 4;  // The sums on their way out: a consumer's rows, one span.
constexpr int kStagedAt = kStages * kStageBytes, kBarriersAt = kStagedAt + kConsumers * kStagedBytes;
constexpr int kSharedBytes = kBarriersAt + 2 * kStages * static_cast<int>(sizeof(Mbarrier));
constexpr auto kSwizzle = ptx::Swizzle::k128Bytes;
constexpr int kSwizzleLines = 8 * 128;  // The swizzle's pattern: 8 lines of a span each.
constexpr int64_t kMostCoordinate = INT32_MAX - kTileN;
constexpr int kVector = 8;  // 16-bit elements that are stored at once.
// Of the registers that the launch gives to each thread, the producer's pass to the consumers, who hold a tile.
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= 64 * 1024 / ptx::kWarpgroup);
static_assert(kSharedBytes <= 227 * 1024, "a block's shared memory");
static_assert(kStageBytes % kSwizzleLines == 0 && kATileBytes % kSwizzleLines == 0 && kBoxBytes % kSwizzleLines == 0,
              "swizzled tiles start where the pattern does");

struct ForwardParams {
  TensorMap a, b;
  GroupedParams product;
};
struct WeightGradParams {
  TensorMap a, b;
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

// The barriers of a stage, and the parity of their phases: each use of a stage is a phase of both.
struct Stage {
  int index = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance() {
    if (++index < kStages) return;
    index = 0;
    parity ^= 1;
  }
};

// Starts loading kTileM rows of A and kTileK of the inner dimension: lines of it, or boxes of kSpan rows across it.
template <bool kAlongK>
__device__ __forceinline__ void load_a_tile(unsigned char* tile, const TensorMap* map, Mbarrier* full, const Work& work,
                                            int k) {
  if constexpr (kAlongK) {
    ptx::tma_load(tile, map, full, {k, work.a_row});
  } else {
#pragma unroll
    for (int i = 0; i < kTileM / kSpan; ++i) {
      ptx::tma_load(tile + i * kBoxBytes, map, full, {work.a_row + i * kSpan, k});
    }
  }
}

// The same for kTileN rows of one matrix of B.
template <bool kAlongK>
__device__ __forceinline__ void load_b_tile(unsigned char* tile, const TensorMap* map, Mbarrier* full, const Work& work,
                                            int k) {
  if constexpr (kAlongK) {
    ptx::tma_load(tile, map, full, {k, work.b_row, work.b_matrix});
  } else {
#pragma unroll
    for (int i = 0; i < kTileN / kSpan; ++i) {
      ptx::tma_load(tile + i * kBoxBytes, map, full, {work.b_row + i * kSpan, k, work.b_matrix});
    }
  }
}

// The descriptor of kWgmmaK of the inner dimension from `k` on, of all rows of such a tile.
template <bool kAlongK>
__device__ __forceinline__ uint64_t operand(const unsigned char* tile, int k) {
  const unsigned char* const from = tile + (kAlongK ? k * 2 : k * kSpan * 2);
  return ptx::wgmma_descriptor(from, kBoxBytes, kSwizzleLines, kSwizzle);
}

template <bool kAAlongK, bool kBAlongK, class Params>
__device__ __forceinline__ void produce(const Params& p, unsigned char* shared, Mbarrier* full, Mbarrier* empty) {
  const bool leader = ptx::elect_one();
  Stage stage;
  for (int64_t i = blockIdx.x; i < most_tiles(p.product); i += gridDim.x) {
    const Work work = find_work(p.product, i);
    if (!leader || work.rows <= 0) continue;
    for (int k = work.k; k < work.k_end; k += kTileK) {
      ptx::mbarrier_wait(&empty[stage.index], stage.parity ^ 1);  // The first round finds the stages empty.
      ptx::mbarrier_arrive_expect(&full[stage.index], kStageBytes);
      unsigned char* const a_tile = shared + stage.index * kStageBytes;
      load_a_tile<kAAlongK>(a_tile, &p.a, &full[stage.index], work, k);
      load_b_tile<kBAlongK>(a_tile + kATileBytes, &p.b, &full[stage.index], work, k);
      stage.advance();
    }
  }
}

// Puts zeros in the place of steps [left, kTileK) of the inner dimension, which are lines of the stage's boxes: the
// consumer's own of A, and half of B's.
__device__ __forceinline__ void clear_lines(unsigned char* stage, int consumer, int thread, int left) {
  constexpr int kLineBytes = kSpan * 2, kBoxes = kTileN / kSpan / kConsumers;
  constexpr int kBothConsumers = 1 + kConsumers;  // The named barrier behind the ones that each consumer has.
  unsigned char* const own = stage + consumer * kBoxBytes;
  unsigned char* const half = stage + kATileBytes + consumer * kBoxes * kBoxBytes;
  for (int at = left * kLineBytes + thread * 16; at < kBoxBytes; at += ptx::kWarpgroup * 16) {
    *reinterpret_cast<uint4*>(own + at) = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kBoxes; ++i) *reinterpret_cast<uint4*>(half + i * kBoxBytes + at) = make_uint4(0, 0, 0, 0);
  }
  ptx::fence_proxy_async();
  ptx::named_barrier_sync(kBothConsumers, kConsumers * ptx::kWarpgroup);
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

template <class T, bool kAAlongK, bool kBAlongK, class Params>
__device__ __forceinline__ void consume(const Params& p, unsigned char* shared, Mbarrier* full, Mbarrier* empty) {
  const int consumer = static_cast<int>(threadIdx.x) / ptx::kWarpgroup - 1;
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup, lane = thread % 32;
  auto* const staged = reinterpret_cast<float*>(shared + kStagedAt + consumer * kStagedBytes);
  Stage stage;
  float sums[kTileN / 2] = {};
  for (int64_t i = blockIdx.x; i < most_tiles(p.product); i += gridDim.x) {
    const Work work = find_work(p.product, i);
    if (work.rows <= 0) continue;
    int previous = 0;
    for (int k = work.k; k < work.k_end; k += kTileK) {
      ptx::mbarrier_wait(&full[stage.index], stage.parity);
      unsigned char* const a_tile = shared + stage.index * kStageBytes;
      if constexpr (!kAAlongK) {
        if (work.k_end - k < kTileK) clear_lines(a_tile, consumer, thread, work.k_end - k);
      }
      ptx::wgmma_fence();
#pragma unroll
      for (int part = 0; part < kTileK; part += ptx::kWgmmaK<T>) {
        // 64 rows are 64 lines of the inner dimension, or a box: as many bytes.
        ptx::wgmma<T, kTileN, kAAlongK, kBAlongK>(sums, operand<kAAlongK>(a_tile + consumer * kBoxBytes, part),
                                                  operand<kBAlongK>(a_tile + kATileBytes, part),
                                                  k > work.k || part > 0);
      }
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();  // The step before is done, this one runs on.
      if (k > work.k && lane == 0) ptx::mbarrier_arrive(&empty[previous]);
      previous = stage.index;
      stage.advance();
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_registers(sums);
    if (work.k < work.k_end && lane == 0) ptx::mbarrier_arrive(&empty[previous]);

#pragma unroll 1
    for (int box = 0; box < kTileN / kSpan; ++box) {
      const int col0 = work.b_row + box * kSpan;
      if (col0 >= p.product.n) break;
      ptx::named_barrier_sync(1 + consumer, ptx::kWarpgroup);  // The box before has been read.
      stage_box(staged, sums, box, thread);
      ptx::named_barrier_sync(1 + consumer, ptx::kWarpgroup);
      store_staged<T>(work, staged, consumer * ptx::kWgmmaM, col0, p.product.n, p.product.output, preact_of(p.product),
                      thread);
    }
  }
}

template <class T, bool kAAlongK, bool kBAlongK, class Params>
__device__ __forceinline__ void run_block(const Params& p, unsigned char* shared) {
  auto* const full = reinterpret_cast<Mbarrier*>(shared + kBarriersAt);
  Mbarrier* const empty = full + kStages;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(&full[stage], 1);
      ptx::mbarrier_init(&empty[stage], 4 * kConsumers);  // A warp each.
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x < ptx::kWarpgroup) {
    ptx::release_registers<kProducerRegisters>();
    if (threadIdx.x < 32) produce<kAAlongK, kBAlongK>(p, shared, full, empty);
  } else {
    ptx::take_registers<kConsumerRegisters>();
    consume<T, kAAlongK, kBAlongK>(p, shared, full, empty);
  }
}

#endif  // WARPWRIGHT_SM90A

// machine code: sm_90a: HGMMA, UTMALDG, STG.128; else: empty
template <class T, bool kBAlongK>
__global__ void __launch_bounds__(kThreads) grouped_wgmma_kernel(const __grid_constant__ ForwardParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  run_block<T, true, kBAlongK>(p, shared);
#endif
}

// machine code: sm_90a: HGMMA, UTMALDG, STG.128; else: empty
template <class T>
__global__ void __launch_bounds__(kThreads)
    grouped_weight_grad_wgmma_kernel(const __grid_constant__ WeightGradParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  run_block<T, false, false>(p, shared);
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

using ptx::TensorLayout;

TensorLayout a_of(const GroupedParams& p) { return {p.a, p.dtype, 2, {p.k, p.groups.rows}, {1, p.a_row}}; }
TensorLayout a_of(const GroupedWeightGradParams& p) { return {p.a, p.dtype, 2, {p.m, p.groups.rows}, {1, p.a_row}}; }

TensorLayout b_of(const GroupedParams& p) {
  const int64_t groups = p.groups.count;
  if (p.b_col == 1) return {p.b, p.dtype, 3, {p.k, p.n, groups}, {1, p.b_row, p.b_group}};
  return {p.b, p.dtype, 3, {p.n, p.k, groups}, {p.b_row, p.b_col, p.b_group}};
}
TensorLayout b_of(const GroupedWeightGradParams& p) {  // One matrix.
  return {p.b, p.dtype, 3, {p.n, p.groups.rows, 1}, {1, p.b_row, p.b_row * p.groups.rows}};
}

TensorMap map_of(const TensorLayout& layout, int lines) {
  return ptx::encode_tiled(layout, {{kSpan, lines, 1}}, kSwizzle);
}

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
  launch(name, kernel, {dim3(blocks), dim3(kThreads), stream, kSharedBytes}, params);
}

template <class T>
auto kernel_for(bool b_along_k) {
  return b_along_k ? grouped_wgmma_kernel<T, true> : grouped_wgmma_kernel<T, false>;
}

}  // namespace

bool grouped_wgmma_takes(const GroupedParams& params) {
  return params.k <= kMostCoordinate && takes(params, params.batch_invariant);
}

void grouped_wgmma(const GroupedParams& params, Stream stream) {
  const bool b_along_k = params.b_col == 1;
  const ForwardParams p{map_of(a_of(params), kTileM), map_of(b_of(params), b_along_k ? kTileN : kSpan), params};
  const auto kernel = params.dtype == DType::kFloat16 ? kernel_for<__half>(b_along_k)  //
                                                      : kernel_for<__nv_bfloat16>(b_along_k);
  run("grouped_wgmma", kernel, p, params, stream);
}

bool grouped_weight_grad_wgmma_takes(const GroupedWeightGradParams& params) {
  return params.b_col == 1 && params.m <= kMostCoordinate && takes(params, false);
}

void grouped_weight_grad_wgmma(const GroupedWeightGradParams& params, Stream stream) {
  const WeightGradParams p{map_of(a_of(params), kSpan), map_of(b_of(params), kSpan), params};
  const auto kernel = params.dtype == DType::kFloat16 ? grouped_weight_grad_wgmma_kernel<__half>
                                                      : grouped_weight_grad_wgmma_kernel<__nv_bfloat16>;
  run("grouped_weight_grad_wgmma", kernel, p, params, stream);
}

}  // namespace warpwright::cuda
