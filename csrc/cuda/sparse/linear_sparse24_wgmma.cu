// linear on a 2:4 sparse weight, on Hopper's tensor cores (sm_90a): TMA, mbarrier, wgmma.sp.
//
// As matmul/gemm_wgmma.cu, with the product transposed, because the sparse operand of wgmma.sp is A: a persistent block
// walks tiles of 128 features of the output, the weight's rows, by 256 rows of it, the input's. The producer has TMA
// bring the next steps of kStepK, of which the weight keeps half; the consumers multiply 64 features each. Their sums
// are turned round in shared memory, 64 rows at a time: so neighbouring threads store neighbouring features, and the
// epilogue is in the code a few times, not once for each of a thread's 128 sums.
//
// The metadata go from global memory to registers, a step before they are needed: TMA would fill rows past the weight's
// last with zeros, which are no metadata. Lanes hold them as in linear_sparse24_mma.cu.

#include <algorithm>

#include "cuda/device.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/wgmma_sp.cuh"
#include "cuda/sparse/linear_sparse24_mma.cuh"
#include "cuda/sparse/linear_sparse24_wgmma.cuh"
#include "cuda/tile/scheduler.cuh"
#include "cuda/tile/warp_specialised.cuh"
#include "cuda/tile/wgmma_mainloop.cuh"

namespace warpwright::cuda {
namespace {

constexpr int kFeatures = kWgmmaConsumers * ptx::kWgmmaM, kRows = 256;  // Of the output's tiles.
constexpr int kStepK = span_of(DType::kFloat16), kKept = kStepK / 2;    // Of K, and what the weight keeps of them.
// Lines of the weight's tiles are as long as the swizzle of 64 bytes permutes.
constexpr auto kValuesSwizzle = ptx::Swizzle::k64Bytes;
constexpr int kValuesLine = kKept * 2, kValuesPattern = 8 * kValuesLine;
constexpr int kValuesBytes = kFeatures * kValuesLine;
// A consumer's sums on their way out, (rows, features): with four more features the elements that a warp writes at once
// lie in different banks.
constexpr int kStagedColumns = ptx::kWgmmaM + 4, kStagedBytes = kBoxRows * kStagedColumns * 4;
using Shared = WgmmaShared<kValuesBytes + kRows * kSpanBytes, kWgmmaConsumers * kStagedBytes>;
static_assert(kStepK == 2 * ptx::kWgmmaSpK, "a step is two products");
static_assert(Shared::kStageBytes % kPatternBytes == 0 && kValuesBytes % kPatternBytes == 0,
              "swizzled tiles start where the pattern does");
static_assert(ptx::kWgmmaM * kValuesLine % kValuesPattern == 0, "and each consumer's part of one");

struct LinearSparse24WgmmaParams {
  ptx::TensorMap values;
  WgmmaOperand input;
  LinearSparse24Params linear;
};

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

#if WARPWRIGHT_SM90A

__device__ __forceinline__ void produce(const LinearSparse24WgmmaParams& p, unsigned char* shared, bool leader) {
  if (!leader) return;
  const GemmParams& gemm = p.linear.gemm;
  Shared::Stage stage;
  for (int64_t i = blockIdx.x; i < tiles_of<kRows, kFeatures>(gemm.m, gemm.n); i += gridDim.x) {
    const MatrixTile tile = banded_tile<kRows, kFeatures>(i, gemm.m, gemm.n);
    const int m0 = static_cast<int>(tile.m0), n0 = static_cast<int>(tile.n0);
    for (WgmmaSource from{}; from.k < gemm.k; from.k += kStepK) {
      ptx::Mbarrier* const full = open_stage(Shared::ring(shared), stage, Shared::kStageBytes);
      unsigned char* const values = shared + stage.index * Shared::kStageBytes;
      ptx::tma_load(values, &p.values, full, {from.k / 2, n0});
      load_operand<kRows>(values + kValuesBytes, p.input, full, m0, from);
      stage.advance();
    }
  }
}

// A lane's part of the metadata of its warp's 16 features, of a step.
struct Metadata {
  const uint8_t *low, *high;  // Of features g and g + 8.

  __device__ __forceinline__ Metadata(const Sparse24& weight, int64_t features, int64_t first, int lane) {
    const int64_t row = first + lane / 4, last = features - 1;
    low = weight.metadata + (row < last ? row : last) * weight.metadata_row + lane % 4 * 2;
    high = weight.metadata + (row + 8 < last ? row + 8 : last) * weight.metadata_row + lane % 4 * 2;
  }

  __device__ __forceinline__ uint32_t operator[](int step) const {
    const int at = step * (kStepK / 8);
    return *reinterpret_cast<const uint16_t*>(low + at) |
           static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(high + at)) << 16;
  }
};

// Stores a consumer's sums, 64 features from feature0 on of kRows rows from m0 on.
template <class T>
__device__ __forceinline__ void store_sums(const GemmParams& gemm, float* staged, int consumer, int64_t m0,
                                           int64_t feature0, const float (&sums)[kRows / 2]) {
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup, lane = thread % 32;
#pragma unroll
  for (int box = 0; box < kRows / kBoxRows; ++box) {
    ptx::named_barrier_sync(1 + consumer, ptx::kWarpgroup);  // The box before has been read.
#pragma unroll
    for (int r = 0; r < kBoxRows / 2; ++r) {
      const int row = r / 4 * 8 + lane % 4 * 2 + r % 2, feature = thread / 32 * 16 + lane / 4 + r / 2 % 2 * 8;
      staged[row * kStagedColumns + feature] = sums[box * kBoxRows / 2 + r];
    }
    ptx::named_barrier_sync(1 + consumer, ptx::kWarpgroup);
#pragma unroll 2
    for (int i = thread; i < kBoxRows * ptx::kWgmmaM; i += ptx::kWarpgroup) {
      const int row = i / ptx::kWgmmaM, feature = i % ptx::kWgmmaM;
      const int64_t at_row = m0 + box * kBoxRows + row, at_feature = feature0 + feature;
      if (at_row < gemm.m && at_feature < gemm.n) {
        store_element<T>(gemm, 0, at_row, at_feature, staged[row * kStagedColumns + feature]);
      }
    }
  }
}

// The products of a tile, `steps` at least one; `values` and `input` are what wgmma is told of the operands in stage 0.
template <class T, bool kInputAlongK>
__device__ __forceinline__ void multiply_tile(float (&sums)[kRows / 2], uint64_t values, uint64_t input,
                                              const Metadata& metadata, Shared::Barriers& ring, Shared::Stage& stage,
                                              int steps) {
  int previous = 0;
  // `now` belongs to this step's products until the next step has waited for them; by then `next` is free again.
  const auto multiply = [&](int step, const uint32_t& now, uint32_t& next) {
    ptx::mbarrier_wait(&ring.full[stage.index], stage.parity);
    const int offset = stage.index * Shared::kStageBytes / 16;
    const auto a = [&](int half) { return values + offset + half * kValuesLine / 2 / 16; };
    // A product takes two of wgmma's steps of the input.
    const auto b = [&](int half) { return advanced<kInputAlongK>(input + offset, 0, 2 * half); };
    ptx::wgmma_fence();
    ptx::wgmma_sp<T, kRows, 0, true, kInputAlongK>(sums, a(0), b(0), now, step > 0);
    ptx::wgmma_sp<T, kRows, 1, true, kInputAlongK>(sums, a(1), b(1), now, true);
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();  // The step before is done, this one runs on.
    if (step > 0) release_stage(ring, previous);
    previous = stage.index;
    stage.advance();
    if (step + 1 < steps) next = metadata[step + 1];
  };
  uint32_t even = metadata[0], odd = 0;
#pragma unroll 1
  for (int step = 0; step < steps; step += 2) {
    multiply(step, even, odd);
    if (step + 1 < steps) multiply(step + 1, odd, even);
  }
  ptx::wgmma_wait<0>();
  ptx::wgmma_registers(sums);
  release_stage(ring, previous);
}

template <class T>
__device__ __forceinline__ void consume(const LinearSparse24WgmmaParams& p, unsigned char* shared, int consumer) {
  const GemmParams& gemm = p.linear.gemm;
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup, lane = thread % 32;
  auto* const staged = reinterpret_cast<float*>(shared + Shared::kBuffersAt + consumer * kStagedBytes);
  const uint64_t values =
      ptx::wgmma_descriptor(shared + consumer * ptx::kWgmmaM * kValuesLine, 0, kValuesPattern, kValuesSwizzle);
  const uint64_t input = operand_descriptor(shared + kValuesBytes);
  const auto steps = static_cast<int>(gemm.k / kStepK);
  Shared::Stage stage;
  float sums[kRows / 2];
  for (int64_t i = blockIdx.x; i < tiles_of<kRows, kFeatures>(gemm.m, gemm.n); i += gridDim.x) {
    const MatrixTile tile = banded_tile<kRows, kFeatures>(i, gemm.m, gemm.n);
    const int64_t feature0 = tile.n0 + consumer * ptx::kWgmmaM;
    const Metadata metadata(p.linear.weight, gemm.n, feature0 + thread / 32 * 16, lane);
    if (p.input.along_k) {
      multiply_tile<T, true>(sums, values, input, metadata, Shared::ring(shared), stage, steps);
    } else {
      multiply_tile<T, false>(sums, values, input, metadata, Shared::ring(shared), stage, steps);
    }
    store_sums<T>(gemm, staged, consumer, tile.m0, feature0, sums);
  }
}

#endif  // WARPWRIGHT_SM90A

// machine code: sm_90a: HGMMA.SP, UTMALDG; else: empty
template <class T>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    linear_sparse24_wgmma_kernel(const __grid_constant__ LinearSparse24WgmmaParams p) {
#if WARPWRIGHT_SM90A
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  specialise_warps(
      Shared::ring(shared), [&](bool leader) { produce(p, shared, leader); },
      [&](int consumer) { consume<T>(p, shared, consumer); });
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

ptx::TensorLayout values_of(const LinearSparse24Params& p) {
  return {p.weight.values, p.gemm.dtype, 2, {p.gemm.k / 2, p.gemm.n}, {1, p.weight.values_row}};
}
ptx::TensorLayout input_of(const GemmParams& p) {
  if (p.a_col == 1) return {p.a, p.dtype, 2, {p.k, p.m}, {1, p.a_row}};
  return {p.a, p.dtype, 2, {p.m, p.k}, {1, p.a_col}};
}

}  // namespace

bool linear_sparse24_wgmma_takes(const LinearSparse24Params& params) {
  const GemmParams& gemm = params.gemm;
  constexpr int64_t kMostCoordinate = INT32_MAX - kRows;
  if (!linear_sparse24_mma_takes(params) || std::max({gemm.m, gemm.n, gemm.k}) > kMostCoordinate) return false;
  if (!ptx::tensor_map_takes(values_of(params)) || !ptx::tensor_map_takes(input_of(gemm))) return false;
  const Device device = current_device();
  // How many tiles there are depends on the number of rows, which must not choose where a row may not notice others.
  const bool enough = 2 * tiles_of<kRows, kFeatures>(gemm.m, gemm.n) >= device.multiprocessors;
  return device.capability == 90 && (enough || gemm.batch_invariant);
}

void linear_sparse24_wgmma(const LinearSparse24Params& params, Stream stream) {
  const GemmParams& gemm = params.gemm;
  const LinearSparse24WgmmaParams p{ptx::encode_tiled(values_of(params), {{kKept, kFeatures}}, kValuesSwizzle),
                                    wgmma_operand(input_of(gemm), gemm.a_col == 1, kRows), params};
  const int64_t blocks =
      std::min<int64_t>(tiles_of<kRows, kFeatures>(gemm.m, gemm.n), current_device().multiprocessors);
  const auto kernel = gemm.dtype == DType::kFloat16 ? linear_sparse24_wgmma_kernel<__half>
                                                    : linear_sparse24_wgmma_kernel<__nv_bfloat16>;
  const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kWgmmaThreads), stream, Shared::kBytes};
  launch("linear_sparse24_wgmma", kernel, config, p);
}

}  // namespace warpwright::cuda
