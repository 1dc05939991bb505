// Params and launchers of the embedding family.

#pragma once

#include "kernels/common.h"

namespace warpwright {

// Gradients of a row of the weight are added up in pieces of this many tokens, counted from the row's first token; the
// pieces are then added in order. So a row's gradient depends on its own tokens alone, and no thread walks all of them.
inline constexpr int64_t kEmbeddingPiece = 64;

struct EmbeddingParams {
  Rows weight;   // (num_embeddings, cols)
  Rows index;    // (tokens) of index_dtype
  void* output;  // (tokens, cols) contiguous
  int64_t tokens, num_embeddings, cols;
  DType dtype, index_dtype;
};

// The tokens sorted by the row of the weight that they take; those of one row stay in order. A token counts as row
// num_embeddings, which has no gradient, if its index is the padding index or lies outside of the weight.
struct EmbeddingSegmentsParams {
  Rows index;       // (tokens) of index_dtype
  int64_t padding;  // A row, or -1.
  int32_t* keys;    // (tokens): each token's row, as said above; on a GPU they are sorted before `starts` is filled
  int64_t* order;   // (tokens): tokens, sorted; filled on the CPU alone
  int64_t* starts;  // (num_embeddings + 1): where the tokens of each row start in `order`
  int64_t tokens, num_embeddings;
  DType index_dtype;
};

struct EmbeddingBackwardParams {
  Rows grad_output;       // (tokens, cols)
  void* grad_weight;      // (num_embeddings, cols) contiguous
  const int32_t* keys;    // (tokens), sorted; on a GPU alone
  const int64_t* order;   // (tokens)
  const int64_t* starts;  // (num_embeddings + 1)
  float* pieces;          // (tokens / kEmbeddingPiece, cols): sums of whole pieces; on a GPU alone
  int64_t tokens, num_embeddings, cols;
  bool scale_grad_by_freq;  // divide each row's sum by the number of its tokens
  DType dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(embedding, EmbeddingParams)
// On the CPU the whole of EmbeddingSegmentsParams; on a GPU, where torch sorts, `keys`, then `starts`.
WARPWRIGHT_DECLARE_LAUNCHER(embedding_segments, EmbeddingSegmentsParams)
WARPWRIGHT_DECLARE_LAUNCHER(embedding_keys, EmbeddingSegmentsParams)
WARPWRIGHT_DECLARE_LAUNCHER(embedding_starts, EmbeddingSegmentsParams)
WARPWRIGHT_DECLARE_LAUNCHER(embedding_backward, EmbeddingBackwardParams)
