// What follows the sums of a product on Hopper: the way from a warp's registers to global memory. A warp has 16 rows of
// every 64 of its warpgroup's, and a buffer in shared memory of its own, so warps never wait for each other here.
//
// There are two ways, and the problem decides which. Where nothing but scales, a bias and relu follows and the output
// has 16 bits and aligned rows, values go from registers by stmatrix to one of the warp's two buffers, and from there
// by a TMA store, which runs on while the other buffer is filled, and under the next tile's products. Otherwise the
// sums go through the buffer in float32, so that a lane then holds eight neighbours of a row: residuals and results
// move 16 bytes at a time where rows are aligned, and any activation, any strides and any output dtype stand in the
// code once, not once for each of a thread's sums.

#pragma once

#include "cuda/matmul/epilogue.cuh"
#include "cuda/matmul/gemm_wgmma.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/wgmma_operand.cuh"
#include "cuda/tile/wgmma_walk.cuh"

namespace warpwright::cuda {

inline constexpr int kWarpRows = 16;
inline constexpr int kWarpBufferBytes = 4096;
inline constexpr int kPack = 8;  // Neighbours of a row in one lane's hands.

// Columns that pass through a warp's buffer at a time: those of a tile are a multiple of them.
WARPWRIGHT_HOST_DEVICE constexpr int box_columns(int tile_n) { return tile_n % 64 == 0 ? 64 : 32; }
// How they lie in it on their way to TMA.
WARPWRIGHT_HOST_DEVICE constexpr ptx::Swizzle output_swizzle(int columns) {
  return columns == 64 ? ptx::Swizzle::k128Bytes : ptx::Swizzle::k64Bytes;
}

inline bool is_whole(const void* data) { return reinterpret_cast<uintptr_t>(data) % kPackBytes == 0; }

// Whether rows of what is stored begin at multiples of a pack.
inline bool results_in_packs(const GemmParams& p) {
  return p.n % kPack == 0 && is_whole(p.output) && is_whole(p.preact);
}

// Whether those of the residual do, and its elements lie together.
inline bool residual_in_packs(const GemmParams& p) {
  const bool half = p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16;
  bool aligned = p.residual != nullptr && half && is_whole(p.residual) && p.n % kPack == 0 && p.residual_col == 1 &&
                 (p.m == 1 || p.residual_row % kPack == 0);
  for (int d = 0; d < kMaxBatchDims; ++d) aligned &= p.batch[d] == 1 || p.residual_batch[d] % kPack == 0;
  return aligned;
}

struct GemmWgmmaParams {
  // In the roles that they play: a's rows are the tile's rows. Swapped, that is the problem's b.
  WgmmaOperand a, b;
  ptx::TensorMap output;  // (matrices, m, n), where results leave by TMA.
  GemmParams gemm;
  WgmmaWalk walk;
  float* partials;      // (splits, matrices, m, n), or null: the sums are the product's.
  bool batched;         // More than one matrix.
  bool by_tma;          // Results leave by TMA,
  bool bare;            // and are the sums, rounded.
  bool packs;           // See results_in_packs,
  bool residual_packs;  // and residual_in_packs.
};

// As a tensor map has it.
inline ptx::TensorLayout output_layout(const GemmParams& p) {
  return {p.output, p.output_dtype, 3, {p.n, p.m, p.matrices()}, {1, p.n, p.m * p.n}};
}

// The host's: how the results of `p`, whose product and partials are set, leave tiles of `tile_n` columns.
inline void set_epilogue(GemmWgmmaParams& p, int tile_n, bool by_tma) {
  const GemmParams& g = p.gemm;
  p.packs = results_in_packs(g);
  p.residual_packs = p.partials == nullptr && residual_in_packs(g);
  p.bare = g.alpha == 1 && g.output_scale == 1 && g.bias == nullptr && g.activation == Activation::kNone;
  p.by_tma = by_tma;
  if (by_tma) {
    const int columns = box_columns(tile_n);
    p.output = ptx::encode_tiled(output_layout(g), {{columns, kWarpRows, 1}}, output_swizzle(columns));
  }
}

// The lane, as a number that the compiler has not seen before. It would work out once what depends on the lane alone,
// and keep it over all tiles in registers that the sums need.
__device__ __forceinline__ int fresh_lane() {
  int lane = static_cast<int>(threadIdx.x) % 32;
#if !defined(WARPWRIGHT_BACKEND_EMULATED)
  asm volatile("" : "+r"(lane));
#endif
  return lane;
}

// ---- eight neighbours of a row ----

__device__ __forceinline__ float from_bits(DType dtype, uint16_t bits) {
  return dtype == DType::kFloat16 ? to_float(std::bit_cast<__half>(bits))
                                  : to_float(std::bit_cast<__nv_bfloat16>(bits));
}

// values[e] += factor * from[e * stride] for the first `count` of them.
template <class T>
__device__ __forceinline__ void add_each(float (&values)[kPack], float factor, const T* from, int64_t stride,
                                         int count) {
#pragma unroll
  for (int e = 0; e < kPack; ++e) {
    if (e < count) values[e] += factor * to_float(from[e * stride]);
  }
}

// The same for elements of an operand's dtype, from element `at` of `from` on.
__device__ __forceinline__ void add_operand(float (&values)[kPack], float factor, DType dtype, const void* from,
                                            int64_t at, int64_t stride, int count) {
  switch (dtype) {
    case DType::kFloat16: return add_each(values, factor, static_cast<const __half*>(from) + at, stride, count);
    case DType::kBFloat16: return add_each(values, factor, static_cast<const __nv_bfloat16*>(from) + at, stride, count);
    default: return add_each(values, factor, static_cast<const float*>(from) + at, stride, count);
  }
}

// Stores the first `count` values from `to` on, as `convert` makes them; `whole`: all of them, and they are aligned.
template <class T, class Convert>
__device__ __forceinline__ void store_each(T* to, const float (&values)[kPack], int count, bool whole,
                                           const Convert& convert) {
  if (whole) {
    constexpr int kTogether = sizeof(T) * kPack > kPackBytes ? kPackSize<T> : kPack;
#pragma unroll
    for (int first = 0; first < kPack; first += kTogether) {
      Pack<T, kTogether> pack;
#pragma unroll
      for (int e = 0; e < kTogether; ++e) pack.values[e] = convert(values[first + e]);
      store_whole(to + first, pack);
    }
  } else {
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      if (e < count) to[e] = convert(values[e]);
    }
  }
}

template <class T>
__device__ __forceinline__ void store_as_float(void* to, int64_t at, const float (&values)[kPack], int count,
                                               bool whole) {
  store_each(static_cast<T*>(to) + at, values, count, whole, [](float x) { return from_float<T>(x); });
}

template <class F>
__device__ __forceinline__ void store_as_float8(void* to, int64_t at, const float (&values)[kPack], int count,
                                                bool whole) {
  store_each(static_cast<uint8_t*>(to) + at, values, count, whole, [](float x) { return encode_float8<F>(x); });
}

// As elements of an operand's dtype, and of an output's.
__device__ __forceinline__ void store_operand(DType dtype, void* to, int64_t at, const float (&values)[kPack],
                                              int count, bool whole) {
  switch (dtype) {
    case DType::kFloat16: return store_as_float<__half>(to, at, values, count, whole);
    case DType::kBFloat16: return store_as_float<__nv_bfloat16>(to, at, values, count, whole);
    default: return store_as_float<float>(to, at, values, count, whole);
  }
}
__device__ __forceinline__ void store_output(DType dtype, void* to, int64_t at, const float (&values)[kPack], int count,
                                             bool whole) {
  switch (dtype) {
    case DType::kFloat8E4M3: return store_as_float8<E4M3>(to, at, values, count, whole);
    case DType::kFloat8E5M2: return store_as_float8<E5M2>(to, at, values, count, whole);
    default: return store_operand(dtype, to, at, values, count, whole);
  }
}

template <Activation kActivation>
__device__ __forceinline__ void activate_each(float (&values)[kPack]) {
#pragma unroll
  for (float& value : values) value = activate(kActivation, value);
}

// One branch for all values.
__device__ __forceinline__ void activate_pack(Activation activation, float (&values)[kPack]) {
  switch (activation) {
    case Activation::kNone: break;
    case Activation::kRelu: activate_each<Activation::kRelu>(values); break;
    case Activation::kGelu: activate_each<Activation::kGelu>(values); break;
    case Activation::kGeluTanh: activate_each<Activation::kGeluTanh>(values); break;
    case Activation::kSilu: activate_each<Activation::kSilu>(values); break;
    case Activation::kSigmoid: activate_each<Activation::kSigmoid>(values); break;
    case Activation::kTanh: activate_each<Activation::kTanh>(values); break;
    case Activation::kLeakyRelu: activate_each<Activation::kLeakyRelu>(values); break;
    case Activation::kHardswish: activate_each<Activation::kHardswish>(values); break;
  }
}

// Where matrix `index` of the batch begins.
struct MatrixPlace {
  int64_t output, residual;

  __device__ __forceinline__ MatrixPlace(const GemmParams& p, int64_t index)
      : output(index * p.m * p.n), residual(p.residual == nullptr ? 0 : batch_offset(p, p.residual_batch, index)) {}
};

// Elements of a matrix of the output from (row, col) on: kPack of them, fewer at its edge, none outside.
struct PackPlace {
  int row, col, count;

  __device__ __forceinline__ PackPlace(const GemmParams& p, int at_row, int at_col) : row(at_row), col(at_col) {
    const int left = row < p.m ? static_cast<int>(p.n) - col : 0;
    count = left < 0 ? 0 : left < kPack ? left : kPack;
  }

  __device__ __forceinline__ int64_t in_output(const GemmParams& p) const { return row * p.n + col; }
  __device__ __forceinline__ int64_t in_residual(const GemmParams& p) const {
    return row * p.residual_row + col * p.residual_col;
  }
};

// The residual's elements at `place`, where they can be loaded as one, long before they are needed.
__device__ __forceinline__ uint4 residual_pack(const GemmWgmmaParams& p, const MatrixPlace& matrix,
                                               const PackPlace& place) {
  uint4 pack{};
  if (p.residual_packs && place.count > 0) {
    const auto* const residual = static_cast<const uint16_t*>(p.gemm.residual) + matrix.residual;
    pack = *reinterpret_cast<const uint4*>(residual + place.in_residual(p.gemm));
  }
  return pack;
}

// The epilogue of the product's elements at `place`, some at least; `residual` is what residual_pack() gave.
__device__ __forceinline__ void finish_pack(const GemmWgmmaParams& p, const MatrixPlace& matrix, const PackPlace& place,
                                            const uint4& residual, float (&values)[kPack]) {
  const GemmParams& g = p.gemm;
#pragma unroll
  for (float& value : values) value *= g.alpha;
  if (g.bias != nullptr) add_operand(values, 1.0f, g.dtype, g.bias, place.col, 1, place.count);
  if (p.residual_packs) {
    const uint32_t words[4] = {residual.x, residual.y, residual.z, residual.w};
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      values[e] += g.beta * from_bits(g.dtype, static_cast<uint16_t>(words[e / 2] >> (16 * (e % 2))));
    }
  } else if (g.residual != nullptr) {
    const int64_t from = matrix.residual + place.in_residual(g);
    add_operand(values, g.beta, g.dtype, g.residual, from, g.residual_col, place.count);
  }
  const int64_t at = matrix.output + place.in_output(g);
  float kept[kPack];
#pragma unroll
  for (int e = 0; e < kPack; ++e) kept[e] = values[e];
  activate_pack(g.activation, values);
  if (g.preact != nullptr) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) kept[e] = needs_preact(g.activation) ? kept[e] : values[e];
    store_operand(g.dtype, g.preact, at, kept, place.count, p.packs);
  }
#pragma unroll
  for (float& value : values) value *= g.output_scale;
  store_output(g.output_dtype, g.output, at, values, place.count, p.packs);
}

// ---- what another kernel's products may want otherwise ----
//
// Kernels whose Params derive from GemmWgmmaParams overload these; a matrix product's are the plain ones.

// A place's tile, and the steps that are added up for it.
template <int kTileM, int kTileN>
__device__ __forceinline__ WgmmaTile tile_at(const GemmWgmmaParams& p, unsigned place, unsigned rank) {
  return p.walk.template tile<kTileM, kTileN>(place, rank);
}

// Where a row of a tile lies in the output, and the column in which a pack of the tile's begins; m and n outside.
__device__ __forceinline__ int output_row(const GemmWgmmaParams&, const WgmmaTile&, int row) { return row; }
__device__ __forceinline__ int output_column(const GemmWgmmaParams&, int col) { return col; }

// What is applied to a warp's sums before all else, while they pass through its buffer: made for each kColumns of its
// columns from `col` on, then given each pack of them, by all lanes.
struct NoColumnStep {
  __device__ __forceinline__ void operator()(float (&)[kPack], int) const {}
};
template <int kColumns>
__device__ __forceinline__ NoColumnStep column_step(const GemmWgmmaParams&, int, int) {
  return {};
}

// What a consumer does with a tile's sums once they are on their way.
template <int kMmas, int kSums>
__device__ __forceinline__ void measure(const GemmWgmmaParams&, const WgmmaTile&, unsigned char (*)[kWarpBufferBytes],
                                        int, const float (&)[kMmas][kSums]) {}

// ---- through shared memory in float32 ----

// Where float (row, col) of a warp's 16 rows by kColumns lies in its buffer, row by row. The 16-byte units of a row are
// exchanged so that neither the eight rows that a fragment has, nor the first or second halves of neighbouring packs,
// lie in the same banks.
template <int kColumns>
__device__ __forceinline__ int staged_at(int row, int col) {
  const int unit = (row * kColumns + col) / 4;
  return (unit ^ row % 4 * 2 ^ (unit >> 3 & 1)) * 4 + col % 4;
}
// Of a tile whose columns are the output's rows, column by column; four floats between them keep the banks apart.
inline constexpr int kStagedPitch = kWarpRows + 4;

template <int kColumns, bool kSwapped>
__device__ __forceinline__ void stage_sums(float* buffer, const float* sums, int lane) {
#pragma unroll
  for (int i = 0; i < kColumns / 2; i += 2) {
    const int row = lane / 4 + i / 2 % 2 * 8, col = i / 4 * 8 + lane % 4 * 2;  // Of wgmma's result, see wgmma.cuh.
    if constexpr (kSwapped) {
      buffer[col * kStagedPitch + row] = sums[i];
      buffer[(col + 1) * kStagedPitch + row] = sums[i + 1];
    } else {
      *reinterpret_cast<float2*>(buffer + staged_at<kColumns>(row, col)) = float2{sums[i], sums[i + 1]};
    }
  }
}

template <int kColumns, bool kSwapped>
__device__ __forceinline__ void read_staged(const float* buffer, int pack, float (&values)[kPack]) {
#pragma unroll
  for (int half = 0; half < kPack; half += 4) {
    const int at = kSwapped ? pack / 2 * kStagedPitch + pack % 2 * kPack + half
                            : staged_at<kColumns>(pack / (kColumns / kPack), pack % (kColumns / kPack) * kPack + half);
    const float4 four = *reinterpret_cast<const float4*>(buffer + at);
    values[half] = four.x, values[half + 1] = four.y, values[half + 2] = four.z, values[half + 3] = four.w;
  }
}

// A warp's 16 rows of each 64 that are its warpgroup's, from (row0, col0) of the roles' output on. Of the residual,
// kAhead packs are on their way to each lane.
template <bool kSwapped, class Params, int kMmas, int kSums>
__device__ __forceinline__ void store_rows(const Params& p, unsigned char* warp_buffer, const WgmmaTile& tile, int row0,
                                           int col0, const float (&sums)[kMmas][kSums]) {
  constexpr int kN = 2 * kSums, kColumns = kSwapped ? (kN < 32 ? kN : 32) : box_columns(kN);
  constexpr int kBoxes = kN / kColumns;                      // Side by side.
  constexpr int kPacks = kWarpRows * kColumns / kPack / 32;  // Of a lane, in a box.
  constexpr int kAhead = kMmas * kSums > 128 ? 2 : 4;        // As many as there are registers left for.
  constexpr int kLast = kMmas * kBoxes * kPacks - 1;
  static_assert(kPacks * 32 * kPack == kWarpRows * kColumns, "every lane has as much");
  static_assert((kSwapped ? kColumns * kStagedPitch : kWarpRows * kColumns) * 4 <= kWarpBufferBytes);
  auto* const buffer = reinterpret_cast<float*>(warp_buffer);
  const int lane = fresh_lane();
  const auto place = [&](int i) {
    const int box = i / kPacks, pack = i % kPacks * 32 + lane;
    const int row = row0 + box / kBoxes * ptx::kWgmmaM, col = col0 + box % kBoxes * kColumns;
    if constexpr (kSwapped) {
      return PackPlace(p.gemm, col + pack / 2, row + pack % 2 * kPack);
    } else {
      constexpr int kWidth = kColumns / kPack;
      return PackPlace(p.gemm, output_row(p, tile, row + pack / kWidth), output_column(p, col + pack % kWidth * kPack));
    }
  };
  const MatrixPlace matrix(p.gemm, tile.matrix);
  uint4 residual[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) residual[i] = residual_pack(p, matrix, place(i < kLast ? i : kLast));
#pragma unroll 1
  for (int box = 0; box < kMmas * kBoxes; ++box) {
    __syncwarp();  // All lanes have read what was here.
#pragma unroll
    for (int i = 0; i < kMmas * kBoxes; ++i) {
      if (i == box) {
        stage_sums<kColumns, kSwapped>(buffer, sums[i / kBoxes] + i % kBoxes * kColumns / 2, lane);
      }
    }
    __syncwarp();
    const auto step = column_step<kColumns>(p, col0 + box % kBoxes * kColumns, lane);
#pragma unroll 1
    for (int i = 0; i < kPacks; ++i) {
      const PackPlace at = place(box * kPacks + i);
      float values[kPack];
      read_staged<kColumns, kSwapped>(buffer, i * 32 + lane, values);
      step(values, lane);
      if (at.count > 0) {
        if (p.partials == nullptr) {
          finish_pack(p, matrix, at, residual[0], values);
        } else {
          const int64_t split = tile.split * p.gemm.matrices() * p.gemm.m * p.gemm.n;
          store_as_float<float>(p.partials, split + matrix.output + at.in_output(p.gemm), values, at.count, p.packs);
        }
      }
      const int next = box * kPacks + i + kAhead;
#pragma unroll
      for (int j = 0; j + 1 < kAhead; ++j) residual[j] = residual[j + 1];
      residual[kAhead - 1] = residual_pack(p, matrix, place(next < kLast ? next : kLast));
    }
  }
}

// ---- by TMA ----

// A warp's way out: 16 rows by some columns at a time through its buffers.
class TmaWriter {
 public:
  __device__ __forceinline__ explicit TmaWriter(unsigned char* buffers) : buffers_(buffers) {}

  // A warp's 16 rows of each 64 that are its warpgroup's, from (row0, col0) on. kBare: they are the sums, rounded.
  template <bool kBare, int kMmas, int kSums>
  __device__ __forceinline__ void store(const GemmWgmmaParams& p, const WgmmaTile& tile, int row0, int col0,
                                        const float (&sums)[kMmas][kSums]) {
    constexpr int kN = 2 * kSums, kColumns = box_columns(kN);
#pragma unroll
    for (int i = 0; i < kMmas; ++i) {
#pragma unroll
      for (int box = 0; box < kN / kColumns; ++box) {
        store_box<kBare, kColumns>(p, tile.matrix, row0 + i * ptx::kWgmmaM, col0 + box * kColumns,
                                   sums[i] + box * kColumns / 2);
      }
    }
  }

 private:
  static constexpr int kBuffers = 2;

  template <bool kBare, int kColumns>
  __device__ __forceinline__ void store_box(const GemmWgmmaParams& p, int matrix, int row0, int col0,
                                            const float* sums) {
    constexpr int kLineBytes = kColumns * 2;
    static_assert(kBuffers * kWarpRows * kLineBytes <= kWarpBufferBytes);
    unsigned char* const buffer = buffers_ + turn_ * kWarpRows * kLineBytes;
    turn_ = (turn_ + 1) % kBuffers;
    const int lane = fresh_lane();
    ptx::tma_store_wait_read<kBuffers - 1>();  // Lane 0's: it alone stores.
    __syncwarp();
    // The matrices of stmatrix: (rows 0-7, cols 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
    const int line = (lane / 8 % 2 * 8 + lane % 8) * kLineBytes, chunk = lane / 16 * 16;
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) {
      float values[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) values[e] = sums[8 * j + e];
      if constexpr (!kBare) finish(p.gemm, col0 + j * 16 + lane % 4 * 2, values);
      uint32_t words[4];
      if (p.gemm.output_dtype == DType::kFloat16) {
        pack_words<__half>(words, values);
      } else {
        pack_words<__nv_bfloat16>(words, values);
      }
      ptx::stmatrix_x4<false>(buffer + ptx::swizzled(line + j * 32 + chunk, output_swizzle(kColumns)), words);
    }
    ptx::fence_proxy_async();
    __syncwarp();
    if (lane == 0) {
      ptx::tma_store(&p.output, buffer, {col0, row0, matrix});
      ptx::tma_store_commit();
    }
  }

  // The scales, the bias and relu, for two rows of columns col, col + 1, col + 8 and col + 9.
  static __device__ __forceinline__ void finish(const GemmParams& p, int col, float (&values)[8]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int at = col + e / 2 * 8 + e % 2;
      float bias = 0.0f;
      if (p.bias != nullptr && at < p.n) bias = from_bits(p.dtype, static_cast<const uint16_t*>(p.bias)[at]);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float& value = values[e / 2 * 4 + row * 2 + e % 2];
        value = p.alpha * value + bias;
        value = p.output_scale * (p.activation == Activation::kRelu ? activate(Activation::kRelu, value) : value);
      }
    }
  }

  template <class T>
  static __device__ __forceinline__ void pack_words(uint32_t (&words)[4], const float (&values)[8]) {
#pragma unroll
    for (int w = 0; w < 4; ++w) words[w] = pack_pair<T>(values[2 * w], values[2 * w + 1]);
  }

  unsigned char* buffers_;
  int turn_ = 0;
};

}  // namespace warpwright::cuda
