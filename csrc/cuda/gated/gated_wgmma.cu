// Two products of one input and the gate between them on Hopper's tensor cores (sm_90a): TMA, mbarrier, wgmma.
//
// A block of three warpgroups stays on its multiprocessor and walks the output's tiles of 128 x 128. A stage holds 64
// of K of the input's rows and, one after the other, of both weights' rows: to wgmma these are one operand of 256 rows,
// so that a consumer's registers hold 64 rows of both products, and each thread both sums of its elements. One thread
// of the first warpgroup, the producer, has TMA fill the stages; the other two warpgroups, the consumers, multiply 64
// of the tile's rows each. A stage's `full` barrier says that its bytes have come, its `empty` barrier that every
// consumer warp is done with it.
//
// The epilogue takes 64 columns at a time: registers, stmatrix to one of two buffers, a TMA store that runs while the
// other buffer is filled. TMA drops what lies outside the matrix, and reads zeros there.

#include <algorithm>

#include "cuda/device.h"
#include "cuda/gated/epilogue.cuh"
#include "cuda/gated/gated_wgmma.cuh"
#include "cuda/launch.h"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/elect.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

using ptx::Mbarrier, ptx::TensorMap;

constexpr int kTileM = 128, kTileN = 128;
constexpr int kSpan = 64;  // 16-bit elements in the 128 bytes that the swizzle permutes: a step along K.
constexpr int kMmaK = 16;  // Of one wgmma of 16-bit elements.
constexpr int kBoth = 2 * kTileN;
constexpr int kConsumers = kTileM / ptx::kWgmmaM;
constexpr int kThreads = ptx::kWarpgroup * (1 + kConsumers);
constexpr int kStages = 4;
constexpr int kBoxBytes = kSpan * kSpan * 2;  // 64 lines of 128 bytes.
constexpr int kInputBytes = kTileM * kSpan * 2, kWeightBytes = kTileN * kSpan * 2;
constexpr int kStageBytes = kInputBytes + 2 * kWeightBytes;
constexpr int kBuffers = 2;  // Of each consumer, for the epilogue.
constexpr int kBuffersAt = kStages * kStageBytes, kBarriersAt = kBuffersAt + kConsumers * kBuffers * kBoxBytes;
constexpr int kSharedBytes = kBarriersAt + 2 * kStages * static_cast<int>(sizeof(Mbarrier));
constexpr auto kSwizzle = ptx::Swizzle::k128Bytes;
constexpr int kSwizzleLines = 8 * 128;  // The swizzle's pattern: 8 lines of a span each.
// Of the registers that the launch gives to each thread, the producer's pass to the consumers, who hold both sums.
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= 64 * 1024 / ptx::kWarpgroup);
static_assert(kSpan % kMmaK == 0 && kBoth <= 256, "what a wgmma takes");
static_assert(kSharedBytes <= 227 * 1024, "a block's shared memory");
static_assert(kInputBytes % kSwizzleLines == 0 && kWeightBytes % kSwizzleLines == 0 && kBoxBytes % kSwizzleLines == 0,
              "swizzled tiles start where the pattern does");

struct GatedWgmmaParams {
  TensorMap input, gate_weight, up_weight, output, gate, up;
  GatedParams gated;
};

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if WARPWRIGHT_SM90A

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

// Starts loading kRows rows and a span of the inner dimension: lines of K, or boxes of kSpan rows with K across.
template <bool kAlongK, int kRows>
__device__ __forceinline__ void load_tile(unsigned char* tile, const TensorMap* map, Mbarrier* full, int row, int k) {
  if constexpr (kAlongK) {
    ptx::tma_load(tile, map, full, {k, row});
  } else {
#pragma unroll
    for (int i = 0; i < kRows / kSpan; ++i) ptx::tma_load(tile + i * kBoxBytes, map, full, {row + i * kSpan, k});
  }
}

// The descriptor of kMmaK of the inner dimension from `k` on, of all rows of such a tile.
template <bool kAlongK>
__device__ __forceinline__ uint64_t operand(const unsigned char* tile, int k) {
  const unsigned char* const from = tile + (kAlongK ? k * 2 : k * kSpan * 2);
  return ptx::wgmma_descriptor(from, kBoxBytes, kSwizzleLines, kSwizzle);
}

template <bool kAAlongK, bool kBAlongK>
__device__ __forceinline__ void produce(const GatedWgmmaParams& p, unsigned char* shared, Mbarrier* full,
                                        Mbarrier* empty) {
  const GatedParams& gated = p.gated;
  Stage stage;
  for (int64_t i = blockIdx.x; i < tiles_of<kTileM, kTileN>(gated.m, gated.n); i += gridDim.x) {
    const MatrixTile tile = banded_tile<kTileM, kTileN>(i, gated.m, gated.n);
    const int m0 = static_cast<int>(tile.m0), n0 = static_cast<int>(tile.n0);
    for (int k = 0; k < gated.k; k += kSpan) {
      ptx::mbarrier_wait(&empty[stage.index], stage.parity ^ 1);  // The first round finds the stages empty.
      Mbarrier* const arrived = &full[stage.index];
      ptx::mbarrier_arrive_expect(arrived, kStageBytes);
      unsigned char* const to = shared + stage.index * kStageBytes;
      load_tile<kAAlongK, kTileM>(to, &p.input, arrived, m0, k);
      load_tile<kBAlongK, kTileN>(to + kInputBytes, &p.gate_weight, arrived, n0, k);
      load_tile<kBAlongK, kTileN>(to + kInputBytes + kWeightBytes, &p.up_weight, arrived, n0, k);
      stage.advance();
    }
  }
}

// A consumer's way out: 64 rows by kSpan columns at a time through its buffers.
struct Writer {
  unsigned char* buffers;
  int consumer, thread;  // The thread's number in the warpgroup.
  int stores = 0;

  // Stores registers [0, kSpan / 2) of a wgmma's result as the box at (row0, col0).
  template <class T>
  __device__ __forceinline__ void store(const TensorMap* map, int row0, int col0, const float* values) {
    unsigned char* const buffer = buffers + stores++ % kBuffers * kBoxBytes;
    ptx::tma_store_wait_read<kBuffers - 1>();  // Thread 0's: it alone stores.
    ptx::named_barrier_sync(1 + consumer, ptx::kWarpgroup);
    const int lane = thread % 32, matrix = lane / 8;  // (rows 0-7, cols 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15)
    const int row = thread / 32 * 16 + matrix % 2 * 8 + lane % 8;
#pragma unroll
    for (int j = 0; j < kSpan / 16; ++j) {
      uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) words[w] = pack_pair<T>(values[8 * j + 2 * w], values[8 * j + 2 * w + 1]);
      const int col = 16 * j + matrix / 2 * 8;
      ptx::stmatrix_x4<false>(buffer + ptx::swizzled(row * kSpan * 2 + col * 2, kSwizzle), words);
    }
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(1 + consumer, ptx::kWarpgroup);
    if (thread == 0) {
      ptx::tma_store(map, buffer, {col0, row0});
      ptx::tma_store_commit();
    }
  }
};

// Gates kSpan columns from `col0` on, in place, and stores what is to be stored of them.
template <class T>
__device__ __forceinline__ void finish_box(const GatedWgmmaParams& p, Writer& writer, int row0, int col0, float* gate,
                                           float* up) {
  const GatedParams& gated = p.gated;
#pragma unroll
  for (int r = 0; r < kSpan / 2; ++r) {
    const int col = col0 + r / 4 * 8 + writer.thread % 4 * 2 + r % 2;
    if (col < gated.n) add_biases<T>(gated, col, gate[r], up[r]);
  }
  const bool keep = gated.gate != nullptr, before = needs_preact(gated.activation);
  if (keep && before) writer.store<T>(&p.gate, row0, col0, gate);
#pragma unroll
  for (int r = 0; r < kSpan / 2; ++r) gate[r] = activate(gated.activation, gate[r]);
  if (keep && !before) writer.store<T>(&p.gate, row0, col0, gate);
  if (keep) writer.store<T>(&p.up, row0, col0, up);
#pragma unroll
  for (int r = 0; r < kSpan / 2; ++r) gate[r] *= up[r];
  writer.store<T>(&p.output, row0, col0, gate);
}

template <class T, bool kAAlongK, bool kBAlongK>
__device__ __forceinline__ void consume(const GatedWgmmaParams& p, unsigned char* shared, Mbarrier* full,
                                        Mbarrier* empty) {
  const GatedParams& gated = p.gated;
  const int consumer = static_cast<int>(threadIdx.x) / ptx::kWarpgroup - 1;
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup, lane = thread % 32;
  Writer writer{shared + kBuffersAt + consumer * kBuffers * kBoxBytes, consumer, thread};
  Stage stage;
  float sums[kBoth / 2] = {};  // The gate's 64 x kTileN, then those of what it gates.
  for (int64_t i = blockIdx.x; i < tiles_of<kTileM, kTileN>(gated.m, gated.n); i += gridDim.x) {
    const MatrixTile tile = banded_tile<kTileM, kTileN>(i, gated.m, gated.n);
    int previous = 0;
    for (int k = 0; k < gated.k; k += kSpan) {
      ptx::mbarrier_wait(&full[stage.index], stage.parity);
      // 64 rows are 64 lines of K, or a box: as many bytes.
      const unsigned char* const rows = shared + stage.index * kStageBytes + consumer * kBoxBytes;
      const unsigned char* const weights = shared + stage.index * kStageBytes + kInputBytes;
      ptx::wgmma_fence();
#pragma unroll
      for (int part = 0; part < kSpan; part += kMmaK) {
        ptx::wgmma<T, kBoth, kAAlongK, kBAlongK>(sums, operand<kAAlongK>(rows, part), operand<kBAlongK>(weights, part),
                                                 k + part > 0);
      }
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();  // The step before is done, this one runs on.
      if (k > 0 && lane == 0) ptx::mbarrier_arrive(&empty[previous]);
      previous = stage.index;
      stage.advance();
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_registers(sums);
    if (lane == 0) ptx::mbarrier_arrive(&empty[previous]);
    const int row0 = static_cast<int>(tile.m0) + consumer * ptx::kWgmmaM;
#pragma unroll
    for (int box = 0; box < kTileN / kSpan; ++box) {
      float* const gate = sums + box * kSpan / 2;
      finish_box<T>(p, writer, row0, static_cast<int>(tile.n0) + box * kSpan, gate, gate + kTileN / 2);
    }
  }
  ptx::tma_store_wait_read<0>();  // Shared memory ends with the block.
}

#endif  // WARPWRIGHT_SM90A

// machine code: sm_90a: HGMMA, UTMALDG, STSM, UTMASTG; else: empty
template <class T, bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(kThreads) gated_wgmma_kernel(const __grid_constant__ GatedWgmmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
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
    if (threadIdx.x < 32 && ptx::elect_one()) produce<kAAlongK, kBAlongK>(p, shared, full, empty);
  } else {
    ptx::take_registers<kConsumerRegisters>();
    consume<T, kAAlongK, kBAlongK>(p, shared, full, empty);
  }
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

TensorMap map_of(const Matrix& matrix, int rows) {
  return ptx::encode_tiled(matrix.layout, {{kSpan, matrix.along_k ? rows : kSpan}}, kSwizzle);
}

template <class T>
auto kernel_for(bool a_along_k, bool b_along_k) {
  if (a_along_k) return b_along_k ? gated_wgmma_kernel<T, true, true> : gated_wgmma_kernel<T, true, false>;
  return b_along_k ? gated_wgmma_kernel<T, false, true> : gated_wgmma_kernel<T, false, false>;
}

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
  const auto stored = [](const Matrix& matrix) { return map_of(matrix, ptx::kWgmmaM); };
  const GatedWgmmaParams p{map_of(all.input, kTileM),
                           map_of(all.gate_weight, kTileN),
                           map_of(all.up_weight, kTileN),
                           stored(all.output),
                           stored(all.gate),
                           stored(all.up),
                           params};
  const int64_t blocks =
      std::min<int64_t>(tiles_of<kTileM, kTileN>(params.m, params.n), current_device().multiprocessors);
  const bool a_along_k = all.input.along_k, b_along_k = all.gate_weight.along_k;
  const auto kernel = params.dtype == DType::kFloat16 ? kernel_for<__half>(a_along_k, b_along_k)
                                                      : kernel_for<__nv_bfloat16>(a_along_k, b_along_k);
  launch("gated_wgmma", kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream, kSharedBytes}, p);
}

}  // namespace warpwright::cuda
