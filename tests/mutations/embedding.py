"""Bugs in the embedding family."""

from mutations._mutation import planted_in

MUTATIONS = [
    *planted_in("csrc/cpu/embedding.cpp",
         ("embedding", "forget the padding", "if (row != p.padding) ++starts[row];", "++starts[row];"),
         ("embedding", "drop the rows that threads share", "    sum_shared_rows<T>(p);\n", ""),
         ("embedding", "lose the last piece", "end_ - begin < kEmbeddingPiece ? end_ : begin + kEmbeddingPiece",
          "end_ - begin < kEmbeddingPiece ? begin : begin + kEmbeddingPiece")),
    *planted_in("csrc/cuda/embedding/embedding.cu",
         ("embedding", "zeros for a bad index", "from_float<T>(NAN)", "from_float<T>(0.0f)"),
         ("embedding", "the piece before", "last - (last - start) % kEmbeddingPiece",
          "last + 1 - kEmbeddingPiece - 0 * start"),
         ("embedding", "forget what follows the pieces", "rest.add_tokens(p, begin, end, first);", ";"),
         ("embedding", "count the padding", " && index != p.padding", "")),
    *planted_in("triton_kernels/embedding.py",
         ("embedding", "the piece before", "last - (last - start) % PIECE", "last + 1 - PIECE"),
         ("embedding", "forget the frequency", "total / tl.maximum(end - start, 1).to(ACC)", "total")),
    *planted_in("python/warpwright/reference/embedding.py",
         ("embedding", "forget the padding", "counts & (index != padding_idx % num_embeddings)", "counts")),
]  # fmt: skip
