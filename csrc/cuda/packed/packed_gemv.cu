// A few rows times a packed weight: what decoding does, and bound by the reading of the weight.
//
// A warp takes two rows of the weight, 16 bytes of each a lane, and the input's elements from the caches, where all
// warps find them. For each element of the weight that is some 3 instructions, and one for each row of the input: from
// 5 rows on the tensor cores need fewer.

#include "cuda/launch.h"
#include "cuda/matmul/epilogue.cuh"
#include "cuda/packed/packed.cuh"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/reduction.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kWarpRows = 2;  // Of the weight.
constexpr int kMaxRows = 4;   // Of the input.

// Elements [k, k + 8) of a row of the input, zeros past its end, which lies between two eights.
template <class T>
__device__ __forceinline__ void load_input(float (&x)[kUnpacked], const T* row, int64_t k, int64_t end) {
  Pack<T, kPackSize<T>> packs[kUnpacked / kPackSize<T>] = {};
  if (k < end) {
#pragma unroll
    for (int i = 0; i < kUnpacked / kPackSize<T>; ++i) {
      packs[i] = *reinterpret_cast<const Pack<T, kPackSize<T>>*>(row + k + i * kPackSize<T>);
    }
  }
#pragma unroll
  for (int i = 0; i < kUnpacked; ++i) x[i] = to_float(packs[i / kPackSize<T>].values[i % kPackSize<T>]);
}

// machine code: LDG.128, SHFL
template <class T, int kBits>
__global__ void __launch_bounds__(kThreads) gemv_packed_kernel(const LinearPackedParams p) {
  constexpr int kPiece = kPieceElements<kBits>, kWords = kUnpackedWords<kBits>;
  const PackedWeight& w = p.weight;
  const GemmParams& g = p.gemm;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t n0 = (static_cast<int64_t>(blockIdx.x) * kWarps + warp) * kWarpRows;
  if (n0 >= w.n) return;
  const int64_t padded = packed_bytes(w.k, kBits) * 8 / kBits;
  float sums[kWarpRows][kMaxRows] = {};
  for (int64_t k = lane * kPiece; k < padded; k += kWarpSize * kPiece) {
    Pack<uint32_t, 4> pieces[kWarpRows];
    uint32_t zeros[kWarpRows];
    float scales[kWarpRows], parts[kWarpRows][kMaxRows] = {};
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const int64_t row = n0 + r < w.n ? n0 + r : n0;  // What a row too many gives is not stored.
      pieces[r] = *reinterpret_cast<const Pack<uint32_t, 4>*>(static_cast<const uint8_t*>(w.data) + row * w.row +
                                                              k * kBits / 8);
      const int64_t group = group_of(w, k < w.k ? k : w.k - 1);
      scales[r] = to_float(scale_at<T>(w, row, group));
      zeros[r] = zero_bits<__half, kBits>(zero_at(w, row, group));
    }
#pragma unroll
    for (int i = 0; i < kPiece / kUnpacked; ++i) {
      float x[kMaxRows][kUnpacked];
#pragma unroll
      for (int m = 0; m < kMaxRows; ++m) {
        if (m < g.m) load_input(x[m], static_cast<const T*>(g.a) + m * g.a_row, k + i * kUnpacked, w.k);
      }
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        uint32_t words[kWords];
#pragma unroll
        for (int j = 0; j < kWords; ++j) words[j] = pieces[r].values[i * kWords + j];
#pragma unroll
        for (int pair = 0; pair < kUnpacked / 2; ++pair) {
          const uint32_t both = unpack_pair<__half, kBits>(words, pair, zeros[r]);
          const float2 q = __half22float2(as_pair<__half>(both));
#pragma unroll
          for (int m = 0; m < kMaxRows; ++m) {
            if (m < g.m) parts[r][m] += q.x * x[m][2 * pair] + q.y * x[m][2 * pair + 1];
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
      for (int m = 0; m < kMaxRows; ++m) sums[r][m] += scales[r] * parts[r][m];
    }
  }
  // Lane r * kMaxRows + m stores the output of weight row r and input row m.
  float value = 0.0f;
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
    for (int m = 0; m < kMaxRows; ++m) {
      const float total = warp_reduce<Sum>(sums[r][m]);
      if (lane == r * kMaxRows + m) value = total;
    }
  }
  const int m = lane % kMaxRows, r = lane / kMaxRows;
  if (r < kWarpRows && m < g.m && n0 + r < w.n) store_element<T>(g, 0, m, n0 + r, value);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

bool gemv_packed_takes(const LinearPackedParams& params) {
  return params.gemm.m <= kMaxRows && !params.gemm.batch_invariant;
}

void gemv_packed(const LinearPackedParams& params, Stream stream) {
  constexpr int64_t kBlockRows = kWarps * kWarpRows;
  const auto blocks = static_cast<unsigned>((params.weight.n + kBlockRows - 1) / kBlockRows);
  visit_float(params.gemm.dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto kernel = params.weight.bits == 4 ? gemv_packed_kernel<T, 4> : gemv_packed_kernel<T, 8>;
    launch("gemv_packed", kernel, {dim3(blocks), dim3(kThreads), stream}, params);
  });
}

}  // namespace warpwright::cuda
