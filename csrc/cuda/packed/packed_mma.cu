// Packed weights on the tensor cores (sm_80 and later): cp.async, mma.sync.
//
// The weight is mma's operand of 16 rows and the input that of 8 columns, so that few rows of the input leave little of
// the tensor cores idle. Packed bytes and input arrive in shared memory, kStages steps of K on their way or in it, and
// the bytes become 16-bit floats in the registers that mma takes them from.
//
// The order of K inside a product is free as long as both operands have the same: lane (g, t) of a warp takes 16
// neighbouring bytes of weight row g, and multiplies what it finds by the same elements of the input. So neither the
// packed layout nor the input needs any order but its own, and a lane reads both in pieces of 16 bytes.

#include "cuda/launch.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/packed/packed.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/tile/pack.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kWeightTile = 16, kInputTile = 8;  // Rows of the weight and of the input in one mma.
constexpr int kSliceBytes = 64;                  // Of a weight row: what the four lanes of a row take at once.
constexpr int kSharedLimit = 96 * 1024;          // Fits every architecture from sm_80 on.

// A block's tile. Few rows of the input: their warps share the steps of K, so that more of the weight is on its way.
template <int kBits, bool kWide>
struct PackedTile {
  static constexpr int kWarpsN = 4, kWarpsK = kWide ? 1 : 2;
  static constexpr int kThreads = 32 * kWarpsN * kWarpsK;
  static constexpr int kWarpTiles = kWide ? 2 : 1;  // Of kWeightTile rows each.
  static constexpr int kRows = kWarpsN * kWarpTiles * kWeightTile, kInputRows = kWide ? 64 : 16;
  static constexpr int kSliceK = kSliceBytes * 8 / kBits;
  static constexpr int kWarpSlices = 128 / kSliceK, kSlices = kWarpSlices * kWarpsK;  // In a step.
  static constexpr int kStepK = kSlices * kSliceK;
  static constexpr int kWeightBytes = kSlices * kRows * kSliceBytes, kInputBytes = kStepK * kInputRows * 2;
  static constexpr int kStageBytes = kWeightBytes + kInputBytes;
  static constexpr int kStages = kSharedLimit / kStageBytes;
  // The sums on their way out: four more columns put what a warp writes at once in different banks.
  static constexpr int kStagedRow = kRows + 4;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kStages >= 3 && kWarpsK * kInputRows * kStagedRow * 4 <= kSharedBytes);
};

constexpr int kElements = 8;  // 16-bit elements in a piece of 16 bytes.

// Where piece `piece` of a slice of an input row lies. The pieces that the lanes of a quarter warp read together, four
// of each of two rows, lie in different banks.
template <class Tile>
__device__ __forceinline__ int input_offset(int slice, int row, int piece) {
  constexpr int kPieces = Tile::kSliceK / kElements, kLanePieces = kPieces / 4;
  const int place = (piece % kLanePieces * 4 + piece / kLanePieces) ^ (row % 2 * 4);
  return ((slice * Tile::kInputRows + row) * kPieces + place) * ptx::kCopyBytes;
}

template <class Tile>
__device__ __forceinline__ int weight_offset(int slice, int row, int piece) {
  return (slice * Tile::kRows + row) * kSliceBytes + piece * ptx::kCopyBytes;
}

// Starts copying pieces of 16 bytes to shared memory: this thread's column of every kRowStep-th row from `row` on, as
// far as `rows`; zeros beyond, or everywhere if the column is not `inside`.
template <int kCopies, int kRowStep>
__device__ __forceinline__ void copy_column(unsigned char* to, int to_step, const unsigned char* data, int64_t pitch,
                                            int64_t row, int64_t rows, bool inside, int64_t column) {
  const unsigned char* from = data + row * pitch + column;
#pragma unroll 4  // All at once, the compiler keeps the pointer of each copy in registers.
  for (int i = 0; i < kCopies; ++i) {
    const bool copied = inside && row + i * kRowStep < rows;
    ptx::cp_async(to + i * to_step, copied ? from : data, copied ? ptx::kCopyBytes : 0);
    from += kRowStep * pitch;
  }
}

template <int kBits, class Tile>
__device__ __forceinline__ void start_stage(unsigned char* stage, const LinearPackedParams& p, int64_t n0, int64_t m0,
                                            int64_t k0) {
  const PackedWeight& w = p.weight;
  constexpr int kWeightWidth = Tile::kSlices * kSliceBytes / ptx::kCopyBytes, kInputWidth = Tile::kStepK / kElements;
  constexpr int kWeightStep = Tile::kThreads / kWeightWidth, kInputStep = Tile::kThreads / kInputWidth;
  constexpr int kSlicePieces = Tile::kSliceK / kElements;
  static_assert(Tile::kRows % kWeightStep == 0 && Tile::kInputRows % kInputStep == 0, "every thread copies as much");
  static_assert(kInputStep % 2 == 0, "a column lies in one place of its rows");
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t byte = k0 * kBits / 8 + thread % kWeightWidth * ptx::kCopyBytes;
  const int weight_at = weight_offset<Tile>(thread % kWeightWidth / 4, thread / kWeightWidth, thread % 4);
  copy_column<Tile::kRows / kWeightStep, kWeightStep>(
      stage + weight_at, kWeightStep * kSliceBytes, static_cast<const unsigned char*>(w.data), w.row,
      n0 + thread / kWeightWidth, w.n, byte < packed_bytes(w.k, kBits), byte);
  const int piece = thread % kInputWidth;
  const int64_t k = k0 + piece * kElements;
  const int input_at = input_offset<Tile>(piece / kSlicePieces, thread / kInputWidth, piece % kSlicePieces);
  copy_column<Tile::kInputRows / kInputStep, kInputStep>(stage + Tile::kWeightBytes + input_at,
                                                         kInputStep * Tile::kSliceK * 2,
                                                         static_cast<const unsigned char*>(p.gemm.a), p.gemm.a_row * 2,
                                                         m0 + thread / kInputWidth, p.gemm.m, k < w.k, k * 2);
}

// What a lane scales the elements of one piece by: the scale's bits, and the zero point above them.
using PieceScale = uint32_t;

template <class T>
__device__ __forceinline__ PieceScale load_scale(const PackedWeight& w, int64_t row, int64_t k) {
  const bool inside = row < w.n && k < w.k;  // Elsewhere the input is zero, or the result is not stored.
  const int64_t at = inside ? row : 0, group = group_of(w, inside ? k : 0);
  return std::bit_cast<uint16_t>(scale_at<T>(w, at, group)) | zero_at(w, at, group) << 16;
}

// Of all pieces that a lane takes apart in one step.
template <class T, class Tile>
struct StepScales {
  PieceScale of[Tile::kWarpSlices][Tile::kWarpTiles][2];

  __device__ __forceinline__ void load(const PackedWeight& w, int64_t row, int64_t k) {
#pragma unroll
    for (int s = 0; s < Tile::kWarpSlices; ++s) {
#pragma unroll
      for (int i = 0; i < Tile::kWarpTiles * 2; ++i) {
        of[s][i / 2][i % 2] = load_scale<T>(w, row + i * 8, k + s * Tile::kSliceK);
      }
    }
  }
};

// sums += the slice's products, for the warp's rows of the weight from `row` on.
template <class T, int kBits, class Tile>
__device__ __forceinline__ void multiply_slice(float (&sums)[Tile::kWarpTiles][Tile::kInputRows / kInputTile][4],
                                               const unsigned char* stage, int slice, int row, int lane,
                                               const PieceScale (&scales)[Tile::kWarpTiles][2]) {
  constexpr int kWords = kUnpackedWords<kBits>;
  const int g = lane / 4, t = lane % 4;
  Pack<uint32_t, 4> pieces[Tile::kWarpTiles][2];
#pragma unroll
  for (int i = 0; i < Tile::kWarpTiles * 2; ++i) {
    const auto* from = stage + weight_offset<Tile>(slice, row + i * 8 + g, t);
    pieces[i / 2][i % 2] = *reinterpret_cast<const Pack<uint32_t, 4>*>(from);
  }
#pragma unroll
  for (int part = 0; part < kPieceElements<kBits> / kUnpacked; ++part) {
    uint32_t weights[Tile::kWarpTiles][2][kUnpacked / 2];
#pragma unroll
    for (int i = 0; i < Tile::kWarpTiles * 2; ++i) {
      uint32_t words[kWords];
#pragma unroll
      for (int j = 0; j < kWords; ++j) words[j] = pieces[i / 2][i % 2].values[part * kWords + j];
      const PieceScale by = scales[i / 2][i % 2];
      const uint32_t zero = zero_bits<T, kBits>(by >> 16), scale = (by & 0xffffu) | by << 16;
#pragma unroll
      for (int pair = 0; pair < kUnpacked / 2; ++pair) {
        const uint32_t q = unpack_pair<T, kBits>(words, pair, zero);
        weights[i / 2][i % 2][pair] = as_word(__hmul2(as_pair<T>(q), as_pair<T>(scale)));
      }
    }
#pragma unroll
    for (int column = 0; column < Tile::kInputRows / kInputTile; ++column) {
      const int piece = t * (kPieceElements<kBits> / kUnpacked) + part;
      const auto* from = stage + Tile::kWeightBytes + input_offset<Tile>(slice, column * kInputTile + g, piece);
      const auto x = *reinterpret_cast<const Pack<uint32_t, 4>*>(from);
#pragma unroll
      for (int i = 0; i < Tile::kWarpTiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // Four of the lane's eight elements each.
          const uint32_t a[4] = {weights[i][0][2 * half], weights[i][1][2 * half], weights[i][0][2 * half + 1],
                                 weights[i][1][2 * half + 1]};
          const uint32_t b[2] = {x.values[2 * half], x.values[2 * half + 1]};
          ptx::mma_m16n8k16<T>(sums[i][column], a, b);
        }
      }
    }
  }
}

// machine code: HMMA.16816.F32, LDS.128, LDGSTS.128
template <class T, int kBits, bool kWide>
__global__ void __launch_bounds__(PackedTile<kBits, kWide>::kThreads) mma_packed_kernel(const LinearPackedParams p) {
  using Tile = PackedTile<kBits, kWide>;
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const PackedWeight& w = p.weight;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp % Tile::kWarpsN * Tile::kWarpTiles * kWeightTile, warp_k = warp / Tile::kWarpsN;
  // Neighbouring blocks take the same rows of the weight.
  const int64_t tiles_m = (p.gemm.m + Tile::kInputRows - 1) / Tile::kInputRows;
  const int64_t n0 = blockIdx.x / tiles_m * Tile::kRows, m0 = blockIdx.x % tiles_m * Tile::kInputRows;
  const int64_t steps = (w.k + Tile::kStepK - 1) / Tile::kStepK;
  const auto start_step = [&](int64_t step) {
    if (step < steps) {
      start_stage<kBits, Tile>(shared + step % Tile::kStages * Tile::kStageBytes, p, n0, m0, step * Tile::kStepK);
    }
    ptx::cp_async_commit();  // Empty past the end: a group for each step keeps the count.
  };
  const int64_t lane_row = n0 + warp_row + lane / 4;
  const int64_t lane_k = warp_k * Tile::kWarpSlices * Tile::kSliceK + lane % 4 * kPieceElements<kBits>;

  float sums[Tile::kWarpTiles][Tile::kInputRows / kInputTile][4] = {};
  StepScales<T, Tile> scales, next;
  next.load(w, lane_row, lane_k);
  for (int64_t step = 0; step < Tile::kStages - 1; ++step) start_step(step);
  for (int64_t step = 0; step < steps; ++step) {
    scales = next;
    next.load(w, lane_row, lane_k + (step + 1) * Tile::kStepK);
    ptx::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();
    start_step(step + Tile::kStages - 1);
    const unsigned char* const stage = shared + step % Tile::kStages * Tile::kStageBytes;
#pragma unroll
    for (int s = 0; s < Tile::kWarpSlices; ++s) {
      multiply_slice<T, kBits, Tile>(sums, stage, warp_k * Tile::kWarpSlices + s, warp_row, lane, scales.of[s]);
    }
  }
  // The sums go through shared memory: neighbouring threads then store neighbouring elements, and the warps' shares of
  // K are added in order. The last step waited for the last copies: nothing is on its way.
  __syncthreads();
  auto* const staged = reinterpret_cast<float*>(shared);  // (kWarpsK, kInputRows, kStagedRow)
#pragma unroll
  for (int i = 0; i < Tile::kWarpTiles; ++i) {
#pragma unroll
    for (int column = 0; column < Tile::kInputRows / kInputTile; ++column) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_row + i * kWeightTile + e / 2 * 8 + lane / 4;
        const int at = warp_k * Tile::kInputRows + column * kInputTile + lane % 4 * 2 + e % 2;
        staged[at * Tile::kStagedRow + row] = sums[i][column][e];
      }
    }
  }
  __syncthreads();
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kInputRows * Tile::kRows; i += Tile::kThreads) {
    const int m = i / Tile::kRows, n = i % Tile::kRows;
    if (m0 + m < p.gemm.m && n0 + n < w.n) {
      float value = staged[m * Tile::kStagedRow + n];
#pragma unroll
      for (int k = 1; k < Tile::kWarpsK; ++k) value += staged[(k * Tile::kInputRows + m) * Tile::kStagedRow + n];
      store_element<T>(p.gemm, 0, m0 + m, n0 + n, value);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

template <class T, int kBits, bool kWide>
void launch_mma(const LinearPackedParams& params, Stream stream) {
  using Tile = PackedTile<kBits, kWide>;
  const int64_t tiles_n = (params.weight.n + Tile::kRows - 1) / Tile::kRows;
  const int64_t tiles_m = (params.gemm.m + Tile::kInputRows - 1) / Tile::kInputRows;
  const auto blocks = static_cast<unsigned>(tiles_n * tiles_m);
  launch("mma_packed", mma_packed_kernel<T, kBits, kWide>,
         {dim3(blocks), dim3(Tile::kThreads), stream, Tile::kSharedBytes}, params);
}

template <class T, int kBits>
void launch_mma(const LinearPackedParams& params, Stream stream) {
  const bool few = params.gemm.m <= PackedTile<kBits, false>::kInputRows && !params.gemm.batch_invariant;
  if (few) return launch_mma<T, kBits, false>(params, stream);
  launch_mma<T, kBits, true>(params, stream);
}

template <class T>
void launch_mma(const LinearPackedParams& params, Stream stream) {
  if (params.weight.bits == 4) return launch_mma<T, 4>(params, stream);
  launch_mma<T, 8>(params, stream);
}

bool mma_packed_takes(const LinearPackedParams& params) {
  const DType dtype = params.gemm.dtype;
  const bool few = params.gemm.m <= kMaxFusedRows || params.gemm.batch_invariant;
  return (dtype == DType::kFloat16 || dtype == DType::kBFloat16) && few;
}

void mma_packed(const LinearPackedParams& params, Stream stream) {
  if (params.gemm.dtype == DType::kFloat16) return launch_mma<__half>(params, stream);
  launch_mma<__nv_bfloat16>(params, stream);
}

// Whether rows of packed bytes and of the input are whole pieces of 16 bytes.
bool pieces_fit(const LinearPackedParams& params) {
  const GemmParams& g = params.gemm;
  const int64_t size = g.dtype == DType::kFloat32 ? 4 : 2;
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % ptx::kCopyBytes == 0; };
  const bool input = g.a_col == 1 && aligned(g.a) && g.a_row * size % ptx::kCopyBytes == 0 && g.k % kUnpacked == 0;
  const PackedWeight& w = params.weight;
  return input && w.col == 1 && aligned(w.data) && w.row % ptx::kCopyBytes == 0;
}

}  // namespace

bool linear_packed_takes(const LinearPackedParams& params) {
  const bool some = params.gemm.m > 0 && params.gemm.n > 0 && params.gemm.k > 0;
  return some && pieces_fit(params) && (gemv_packed_takes(params) || mma_packed_takes(params));
}

void linear_packed(const LinearPackedParams& params, Stream stream) {
  if (gemv_packed_takes(params)) return gemv_packed(params, stream);
  mma_packed(params, stream);
}

}  // namespace warpwright::cuda
