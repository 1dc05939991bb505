// Matrix product on Hopper's tensor cores (sm_90a): TMA, mbarrier, wgmma.
//
// A block of three warpgroups stays on its multiprocessor and walks the output's tiles of 128 x 256. One thread of the
// first warpgroup, the producer, has TMA bring the operands' next kStages steps of K to shared memory; the other two,
// the consumers, multiply 64 of the tile's rows each. A stage goes back and forth between them: its `full` barrier says
// that its bytes have come, its `empty` barrier that every consumer warp is done with it. The producer never waits for
// an epilogue: while the consumers finish a tile, the next one's first steps arrive.
//
// The epilogue takes 64 columns at a time: registers, stmatrix to one of two buffers, a TMA store that runs while the
// other buffer is filled. TMA drops what lies outside the matrix, and reads zeros there.

#include <algorithm>
#include <bit>

#include "cuda/device.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/matmul/gemm_wgmma.cuh"
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

constexpr int kTileM = 128, kTileN = 256;
constexpr int kSpan = 64;      // 16-bit elements in the 128 bytes that the swizzle permutes.
constexpr int kTileK = kSpan;  // Rows of the operands' tiles are one span where K lies together.
constexpr int kConsumers = kTileM / ptx::kWgmmaM;
constexpr int kThreads = ptx::kWarpgroup * (1 + kConsumers);
constexpr int kStages = 4;
constexpr int kATileBytes = kTileM * kTileK * 2, kStageBytes = kATileBytes + kTileN * kTileK * 2;
constexpr int kBoxBytes = kSpan * kSpan * 2;  // 64 lines of 128 bytes.
constexpr int kBuffers = 2;                   // Of each consumer, for the epilogue.
constexpr int kBuffersAt = kStages * kStageBytes, kBarriersAt = kBuffersAt + kConsumers * kBuffers * kBoxBytes;
constexpr int kSharedBytes = kBarriersAt + 2 * kStages * static_cast<int>(sizeof(Mbarrier));
constexpr auto kSwizzle = ptx::Swizzle::k128Bytes;
constexpr int kSwizzleLines = 8 * 128;  // The swizzle's pattern: 8 lines of a span each.
// Of the registers that the launch gives to each thread, the producer's pass to the consumers, who hold a tile.
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= 64 * 1024 / ptx::kWarpgroup);
static_assert(kSharedBytes <= 227 * 1024, "a block's shared memory");
static_assert(kStageBytes % kSwizzleLines == 0 && kATileBytes % kSwizzleLines == 0 && kBoxBytes % kSwizzleLines == 0,
              "swizzled tiles start where the pattern does");

struct GemmWgmmaParams {
  TensorMap a, b, output, preact;
  GemmParams gemm;
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

// Starts loading kRows rows and kTileK of the inner dimension: lines of K, or boxes of kSpan rows with K across.
template <bool kAlongK, int kRows>
__device__ __forceinline__ void load_tile(unsigned char* tile, const TensorMap* map, Mbarrier* full, int row, int k) {
  if constexpr (kAlongK) {
    ptx::tma_load(tile, map, full, {k, row});
  } else {
#pragma unroll
    for (int i = 0; i < kRows / kSpan; ++i) ptx::tma_load(tile + i * kBoxBytes, map, full, {row + i * kSpan, k});
  }
}

// The descriptor of kWgmmaK of the inner dimension from `k` on, of all rows of such a tile.
template <bool kAlongK>
__device__ __forceinline__ uint64_t operand(const unsigned char* tile, int k) {
  const unsigned char* const from = tile + (kAlongK ? k * 2 : k * kSpan * 2);
  return ptx::wgmma_descriptor(from, kBoxBytes, kSwizzleLines, kSwizzle);
}

template <bool kAAlongK, bool kBAlongK>
__device__ __forceinline__ void produce(const GemmWgmmaParams& p, unsigned char* shared, Mbarrier* full,
                                        Mbarrier* empty) {
  const GemmParams& gemm = p.gemm;
  Stage stage;
  for (int64_t i = blockIdx.x; i < tiles_of<kTileM, kTileN>(gemm.m, gemm.n); i += gridDim.x) {
    const MatrixTile tile = banded_tile<kTileM, kTileN>(i, gemm.m, gemm.n);
    const int m0 = static_cast<int>(tile.m0), n0 = static_cast<int>(tile.n0);
    for (int k = 0; k < gemm.k; k += kTileK) {
      ptx::mbarrier_wait(&empty[stage.index], stage.parity ^ 1);  // The first round finds the stages empty.
      ptx::mbarrier_arrive_expect(&full[stage.index], kStageBytes);
      unsigned char* const a_tile = shared + stage.index * kStageBytes;
      load_tile<kAAlongK, kTileM>(a_tile, &p.a, &full[stage.index], m0, k);
      load_tile<kBAlongK, kTileN>(a_tile + kATileBytes, &p.b, &full[stage.index], n0, k);
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

template <class T, bool kAAlongK, bool kBAlongK>
__device__ __forceinline__ void consume(const GemmWgmmaParams& p, unsigned char* shared, Mbarrier* full,
                                        Mbarrier* empty) {
  const GemmParams& gemm = p.gemm;
  const int consumer = static_cast<int>(threadIdx.x) / ptx::kWarpgroup - 1;
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup, lane = thread % 32;
  Writer writer{shared + kBuffersAt + consumer * kBuffers * kBoxBytes, consumer, thread};
  Stage stage;
  float sums[kTileN / 2] = {};
  for (int64_t i = blockIdx.x; i < tiles_of<kTileM, kTileN>(gemm.m, gemm.n); i += gridDim.x) {
    const MatrixTile tile = banded_tile<kTileM, kTileN>(i, gemm.m, gemm.n);
    int previous = 0;
    for (int k = 0; k < gemm.k; k += kTileK) {
      ptx::mbarrier_wait(&full[stage.index], stage.parity);
      // 64 rows are 64 lines of K, or a box: as many bytes.
      const unsigned char* const a_tile = shared + stage.index * kStageBytes + consumer * kBoxBytes;
      const unsigned char* const b_tile = shared + stage.index * kStageBytes + kATileBytes;
      ptx::wgmma_fence();
#pragma unroll
      for (int part = 0; part < kTileK; part += ptx::kWgmmaK) {
        ptx::wgmma<T, kTileN, kAAlongK, kBAlongK>(sums, operand<kAAlongK>(a_tile, part),
                                                  operand<kBAlongK>(b_tile, part), k + part > 0);
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

    const auto row0 = static_cast<int>(tile.m0) + consumer * ptx::kWgmmaM;
    const int first_row = row0 + thread / 32 * 16 + lane / 4;
#pragma unroll
    for (int box = 0; box < kTileN / kSpan; ++box) {
      const auto col0 = static_cast<int>(tile.n0) + box * kSpan;
      float values[kSpan / 2];
#pragma unroll
      for (int r = 0; r < kSpan / 2; ++r) {
        const int row = first_row + r / 2 % 2 * 8, col = col0 + r / 4 * 8 + lane % 4 * 2 + r % 2;
        const bool inside = row < gemm.m && col < gemm.n;
        values[r] = sums[box * kSpan / 2 + r];
        if (inside) values[r] = with_addends<T>(gemm, row, col, values[r]);
      }
      if (gemm.preact != nullptr) writer.store<T>(&p.preact, row0, col0, values);
#pragma unroll
      for (float& value : values) value = activate(gemm.activation, value);
      writer.store<T>(&p.output, row0, col0, values);
    }
  }
  ptx::tma_store_wait_read<0>();  // Shared memory ends with the block.
}

#endif  // WARPWRIGHT_SM90A

// machine code: sm_90a: HGMMA, UTMALDG, STSM, UTMASTG; else: empty
template <class T, bool kAAlongK, bool kBAlongK>
__global__ void __launch_bounds__(kThreads) gemm_wgmma_kernel(const __grid_constant__ GemmWgmmaParams p) {
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
  bool along_k;  // Or, of the output, along a row.
};

Matrix matrix(DType dtype, const void* data, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
  if (col_stride == 1) return {{data, dtype, 2, {cols, rows}, {1, row_stride}}, true};
  return {{data, dtype, 2, {rows, cols}, {row_stride, col_stride}}, false};
}

Matrix a_of(const GemmParams& p) { return matrix(p.dtype, p.a, p.m, p.k, p.a_row, p.a_col); }
Matrix b_of(const GemmParams& p) { return matrix(p.dtype, p.b, p.n, p.k, p.b_row, p.b_col); }
Matrix result_of(const GemmParams& p, const void* data) { return matrix(p.dtype, data, p.m, p.n, p.n, 1); }

TensorMap map_of(const Matrix& matrix, int rows) {
  return ptx::encode_tiled(matrix.layout, {{kSpan, matrix.along_k ? rows : kSpan}}, kSwizzle);
}

template <class T>
auto kernel_for(bool a_along_k, bool b_along_k) {
  if (a_along_k) return b_along_k ? gemm_wgmma_kernel<T, true, true> : gemm_wgmma_kernel<T, true, false>;
  return b_along_k ? gemm_wgmma_kernel<T, false, true> : gemm_wgmma_kernel<T, false, false>;
}

}  // namespace

bool gemm_wgmma_takes(const GemmParams& params) {
  const bool half = params.dtype == DType::kFloat16 || params.dtype == DType::kBFloat16;
  constexpr int64_t kMostCoordinate = INT32_MAX - kTileN;
  if (!half || std::max({params.m, params.n, params.k}) > kMostCoordinate) return false;
  const void* const preact = params.preact == nullptr ? params.output : params.preact;
  for (const Matrix& m : {a_of(params), b_of(params), result_of(params, params.output), result_of(params, preact)}) {
    if (!ptx::tensor_map_takes(m.layout)) return false;
  }
  const Device device = current_device();
  // wgmma does half as much again as mma.sync, but where its tiles leave every other multiprocessor idle, the tiles of
  // gemm_mma, half as large, leave none.
  return device.capability == 90 && 2 * tiles_of<kTileM, kTileN>(params.m, params.n) >= device.multiprocessors;
}

void gemm_wgmma(const GemmParams& params, Stream stream) {
  const Matrix a = a_of(params), b = b_of(params);
  GemmWgmmaParams p{
      map_of(a, kTileM), map_of(b, kTileN), map_of(result_of(params, params.output), ptx::kWgmmaM), {}, params};
  if (params.preact != nullptr) p.preact = map_of(result_of(params, params.preact), ptx::kWgmmaM);
  const int64_t blocks =
      std::min<int64_t>(tiles_of<kTileM, kTileN>(params.m, params.n), current_device().multiprocessors);
  const auto kernel = params.dtype == DType::kFloat16 ? kernel_for<__half>(a.along_k, b.along_k)
                                                      : kernel_for<__nv_bfloat16>(a.along_k, b.along_k);
  launch("gemm_wgmma", kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream, kSharedBytes}, p);
}

}  // namespace warpwright::cuda
