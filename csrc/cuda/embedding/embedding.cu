// Embedding: a warp copies a part of a row in packs, with several of them on their way at once.
//
// Backward: torch sorts the tokens by the row of the weight that they take, and each row of the gradient is written
// once, as the sum of its tokens in that order or as zeros. Rows of many tokens are summed in two stages. No atomics:
// the same bits every time.
//
// An index that lies outside of the weight gives a row of NaN, has no gradient, and is never used as an address: the
// host cannot look at the indices without waiting for the GPU.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/pack.cuh"
#include "cuda/tile/reduction.cuh"
#include "kernels/embedding.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kPacks = 4;  // Of one lane: a warp takes kPacks * kWarpSize packs of a row.
template <int kCount>
constexpr int64_t kTileCols = kPacks * kWarpSize * kCount;

__device__ __forceinline__ int64_t index_at(const Rows& index, DType dtype, int64_t token) {
  const int64_t at = index.offset(token);
  if (dtype == DType::kInt64) return static_cast<const int64_t*>(index.data)[at];
  return static_cast<const int32_t*>(index.data)[at];
}

// A row and the first column of this lane's packs, which are kWarpSize packs apart.
struct Tile {
  int64_t row, col;
};

template <int kCount>
__device__ __forceinline__ Tile tile_of_lane(int64_t cols) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int64_t tiles = (cols + kTileCols<kCount> - 1) / kTileCols<kCount>, row = warp / tiles;
  return {row, (warp - row * tiles) * kTileCols<kCount> + threadIdx.x % kWarpSize * kCount};
}

// Packs never straddle the end of a row: rows that have no whole number of them are taken one element at a time.
// machine code: 1>: plain; else: 16-byte
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) embedding_kernel(const EmbeddingParams p) {
  const auto [token, first] = tile_of_lane<kCount>(p.cols);
  if (token >= p.tokens) return;
  const int64_t index = index_at(p.index, p.index_dtype, token);
  const bool known = index >= 0 && index < p.num_embeddings;
  const T* row = static_cast<const T*>(p.weight.data) + (known ? p.weight.offset(index) : 0);
  T* output = static_cast<T*>(p.output) + token * p.cols;
  using P = Pack<T, kCount>;
  P packs[kPacks];
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t col = first + k * kWarpSize * kCount;
    if (known && col < p.cols) {
      packs[k] = *reinterpret_cast<const P*>(row + col * (kCount == 1 ? p.weight.col_stride : 1));
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) packs[k].values[i] = from_float<T>(NAN);
    }
  }
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t col = first + k * kWarpSize * kCount;
    if (col < p.cols) store_whole(output + col, packs[k]);
  }
}

// machine code: plain
__global__ void __launch_bounds__(kThreads) embedding_keys_kernel(const EmbeddingSegmentsParams p) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (token >= p.tokens) return;
  const int64_t index = index_at(p.index, p.index_dtype, token);
  const bool counts = index >= 0 && index < p.num_embeddings && index != p.padding;
  p.keys[token] = static_cast<int32_t>(counts ? index : p.num_embeddings);
}

// starts[row] = how many keys are below it.
// machine code: plain
__global__ void __launch_bounds__(kThreads) embedding_starts_kernel(const EmbeddingSegmentsParams p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row > p.num_embeddings) return;
  int64_t low = 0, high = p.tokens;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (p.keys[middle] < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  p.starts[row] = low;
}

// Sums of this lane's columns, over tokens in order.
template <class T, int kCount>
struct LaneSum {
  float values[kPacks][kCount] = {};

  __device__ __forceinline__ void add_tokens(const EmbeddingBackwardParams& p, int64_t begin, int64_t end,
                                             int64_t first) {
    const int64_t step = kCount == 1 ? p.grad_output.col_stride : 1;
    for (int64_t i = begin; i < end; ++i) {
      const T* grad = static_cast<const T*>(p.grad_output.data) + p.grad_output.offset(p.order[i]);
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        const int64_t col = first + k * kWarpSize * kCount;
        if (col >= p.cols) continue;
        const auto pack = *reinterpret_cast<const Pack<T, kCount>*>(grad + col * step);
#pragma unroll
        for (int j = 0; j < kCount; ++j) values[k][j] += to_float(pack.values[j]);
      }
    }
  }
  __device__ __forceinline__ void add_piece(const float* piece, int64_t cols, int64_t first) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int64_t col = first + k * kWarpSize * kCount;
      if (col >= cols) continue;
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[k][j] += piece[col + j];
    }
  }
};

// A row's tokens are cut into pieces from its first one on; the whole pieces of rows that have more than one are summed
// here. At most one whole piece starts among any kEmbeddingPiece places of `order`, and contains the last of them: its
// sum is number place / kEmbeddingPiece.
// machine code: 1>: plain; else: LDG.128
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) embedding_pieces_kernel(const EmbeddingBackwardParams p) {
  const auto [number, first] = tile_of_lane<kCount>(p.cols);
  if (number >= p.tokens / kEmbeddingPiece) return;
  const int64_t last = (number + 1) * kEmbeddingPiece - 1, row = p.keys[last];
  if (row >= p.num_embeddings) return;
  const int64_t start = p.starts[row], end = p.starts[row + 1];
  const int64_t begin = last - (last - start) % kEmbeddingPiece;
  if (end - start <= kEmbeddingPiece || begin + kEmbeddingPiece > end) return;
  LaneSum<T, kCount> sum;
  sum.add_tokens(p, begin, begin + kEmbeddingPiece, first);
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t col = first + k * kWarpSize * kCount;
    if (col >= p.cols) continue;
#pragma unroll
    for (int j = 0; j < kCount; ++j) p.pieces[number * p.cols + col + j] = sum.values[k][j];
  }
}

// machine code: 1>: plain; else: LDG.128, STG.128
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) embedding_backward_kernel(const EmbeddingBackwardParams p) {
  const auto [row, first] = tile_of_lane<kCount>(p.cols);
  if (row >= p.num_embeddings) return;
  const int64_t start = p.starts[row], end = p.starts[row + 1];
  LaneSum<T, kCount> sum;
  int64_t begin = start;
  if (end - start > kEmbeddingPiece) {
    for (; begin + kEmbeddingPiece <= end; begin += kEmbeddingPiece) {
      sum.add_piece(p.pieces + begin / kEmbeddingPiece * p.cols, p.cols, first);
    }
  }
  if (begin == start) {
    sum.add_tokens(p, begin, end, first);
  } else if (begin < end) {
    LaneSum<T, kCount> rest;
    rest.add_tokens(p, begin, end, first);
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) sum.values[k][j] += rest.values[k][j];
    }
  }
  const float divisor = p.scale_grad_by_freq && end > start ? static_cast<float>(end - start) : 1.0f;
  T* output = static_cast<T*>(p.grad_weight) + row * p.cols;
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t col = first + k * kWarpSize * kCount;
    if (col >= p.cols) continue;
    Pack<T, kCount> pack;
#pragma unroll
    for (int j = 0; j < kCount; ++j) pack.values[j] = from_float<T>(sum.values[k][j] / divisor);
    store_whole(output + col, pack);
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

LaunchConfig config_for(int64_t rows, int64_t cols, int count, Stream stream) {
  const int64_t tile = int64_t{kPacks} * kWarpSize * count;
  return {dim3(blocks_for(rows * ((cols + tile - 1) / tile), kWarps)), dim3(kThreads), stream};
}

}  // namespace

void embedding(const EmbeddingParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool packs = params.cols % kPackSize<T> == 0 && rows_fit_packs<T>(params.weight);
    launch("embedding", packs ? embedding_kernel<T, kPackSize<T>> : embedding_kernel<T, 1>,
           config_for(params.tokens, params.cols, packs ? kPackSize<T> : 1, stream), params);
  });
}

void embedding_keys(const EmbeddingSegmentsParams& params, Stream stream) {
  launch("embedding_keys", embedding_keys_kernel, {dim3(blocks_for(params.tokens, kThreads)), dim3(kThreads), stream},
         params);
}

void embedding_starts(const EmbeddingSegmentsParams& params, Stream stream) {
  launch("embedding_starts", embedding_starts_kernel,
         {dim3(blocks_for(params.num_embeddings + 1, kThreads)), dim3(kThreads), stream}, params);
}

void embedding_backward(const EmbeddingBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool packs = params.cols % kPackSize<T> == 0 && rows_fit_packs<T>(params.grad_output);
    const int count = packs ? kPackSize<T> : 1;
    const int64_t pieces = params.tokens / kEmbeddingPiece;
    if (pieces > 0) {
      launch("embedding_pieces", packs ? embedding_pieces_kernel<T, kPackSize<T>> : embedding_pieces_kernel<T, 1>,
             config_for(pieces, params.cols, count, stream), params);
    }
    launch("embedding_backward", packs ? embedding_backward_kernel<T, kPackSize<T>> : embedding_backward_kernel<T, 1>,
           config_for(params.num_embeddings, params.cols, count, stream), params);
  });
}

}  // namespace warpwright::cuda
