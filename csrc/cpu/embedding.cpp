// Embedding on the CPU: rows of the weight are copied, tokens to threads. Backward: the tokens are sorted by counting;
// each row of the gradient is then written once, its tokens added in registers or zeros. Rows of many tokens are shared
// by all threads, each of which takes some columns.

#include "kernels/embedding.h"

#include "cpu/parallel.h"
#include "cpu/stream.h"
#include "cpu/vec.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// A row of more tokens than this is shared by all threads.
constexpr int64_t kSharedTokens = 512;
// Of the next token's row, whose place no prefetcher can guess: the processor's own takes over from there.
constexpr int64_t kPrefetchBytes = 256, kLineBytes = 64;
// Columns whose sums stay in registers.
template <class A>
constexpr int64_t kTileCols = 8 * kLanes<A>;

int64_t index_at(const Rows& index, DType dtype, int64_t token) {
  const int64_t at = index.offset(token);
  if (dtype == DType::kInt64) return static_cast<const int64_t*>(index.data)[at];
  return static_cast<const int32_t*>(index.data)[at];
}

template <class T>
void copy_rows(const EmbeddingParams& p, int64_t begin, int64_t end) {
  const int64_t row_bytes = p.cols * static_cast<int64_t>(sizeof(T));
  Scratch<T> scratch(p.weight.col_stride == 1 ? 0 : p.cols);
  const auto row_at = [&](int64_t token) {
    return static_cast<const T*>(p.weight.data) + p.weight.offset(index_at(p.index, p.index_dtype, token));
  };
  for (int64_t token = begin; token < end; ++token) {
    const char* next = reinterpret_cast<const char*>(row_at(token + 1 < end ? token + 1 : token));
    for (int64_t b = 0; b < row_bytes && b < kPrefetchBytes; b += kLineBytes) __builtin_prefetch(next + b);
    const T* row = row_data(p.weight, index_at(p.index, p.index_dtype, token), p.cols, scratch.data());
    std::memcpy(static_cast<T*>(p.output) + token * p.cols, row, static_cast<size_t>(row_bytes));
  }
}

// Sums of `count` elements from column `first` on, over the tokens of one row of the weight.
template <class T>
class RowSum {
  using A = acc_t<T>;

 public:
  RowSum(const EmbeddingBackwardParams& p, int64_t row)
      : p_(p), begin_(p.starts[row]), end_(p.starts[row + 1]), divisor_(1) {
    if (p.scale_grad_by_freq && end_ > begin_) divisor_ = static_cast<A>(end_ - begin_);
  }

  void sum(int64_t first, int64_t count, T* out) const {
    int64_t i = 0;
    for (; i + kTileCols<A> <= count; i += kTileCols<A>) tile<8>(first + i, out + i, Whole{});
    for_each_vector<A>(count - i, [&](int64_t rest, auto n) { tile<1>(first + i + rest, out + i + rest, n); });
  }

 private:
  template <int kVectors, class Count>
  void tile(int64_t col, T* out, Count n) const {
    Vec<A> total[kVectors]{};
    for (int64_t begin = begin_; begin < end_; begin += kEmbeddingPiece) {
      const int64_t end = end_ - begin < kEmbeddingPiece ? end_ : begin + kEmbeddingPiece;
      Vec<A> part[kVectors]{};
      for (int64_t i = begin; i < end; ++i) {
        const T* grad = static_cast<const T*>(p_.grad_output.data) + p_.grad_output.offset(p_.order[i]);
        for (int v = 0; v < kVectors; ++v) part[v] += load_grad(grad, col + v * kLanes<A>, n);
      }
      for (int v = 0; v < kVectors; ++v) total[v] += part[v];
    }
    for (int v = 0; v < kVectors; ++v) store(out + v * kLanes<A>, total[v] / divisor_, n);
  }
  Vec<A> load_grad(const T* grad, int64_t col, Whole) const {
    return p_.grad_output.col_stride == 1 ? load(grad + col) : load_grad(grad, col, kLanes<A>);
  }
  Vec<A> load_grad(const T* grad, int64_t col, int64_t count) const {
    Vec<A> v{};
    for (int64_t i = 0; i < count; ++i) v[i] = to_acc(grad[(col + i) * p_.grad_output.col_stride]);
    return v;
  }

  const EmbeddingBackwardParams& p_;
  const int64_t begin_, end_;
  A divisor_;
};

// The first row whose place in a list of all rows and all tokens is at least `unit`. Threads get equal parts of it.
int64_t row_of_unit(const EmbeddingBackwardParams& p, int64_t unit) {
  int64_t low = 0, high = p.num_embeddings;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (middle + p.starts[middle] < unit) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class T>
void sum_rows(const EmbeddingBackwardParams& p, int64_t begin, int64_t end) {
  const int64_t row_bytes = p.cols * static_cast<int64_t>(sizeof(T));
  const bool stream = p.num_embeddings * row_bytes >= kStreamBytes;
  Scratch<T> scratch(p.cols);
  const int64_t last = row_of_unit(p, end);
  for (int64_t row = row_of_unit(p, begin); row < last; ++row) {
    const int64_t tokens = p.starts[row + 1] - p.starts[row];
    T* out = static_cast<T*>(p.grad_weight) + row * p.cols;
    if (tokens == 0) {
      int64_t end_of_run = row + 1;
      while (end_of_run < last && p.starts[end_of_run + 1] == p.starts[row]) ++end_of_run;
      const int64_t bytes = (end_of_run - row) * row_bytes;
      if (stream) {
        stream_bytes(out, nullptr, bytes);
      } else {
        std::memset(static_cast<void*>(out), 0, static_cast<size_t>(bytes));
      }
      row = end_of_run - 1;  // The loop's step goes past the run.
    } else if (tokens <= kSharedTokens) {
      RowSum<T>(p, row).sum(0, p.cols, stream ? scratch.data() : out);
      if (stream) stream_bytes(out, scratch.data(), row_bytes);
    }
  }
  finish_streams();
}

template <class T>
void sum_shared_rows(const EmbeddingBackwardParams& p) {
  for (int64_t row = 0; row < p.num_embeddings; ++row) {
    const int64_t tokens = p.starts[row + 1] - p.starts[row];
    if (tokens <= kSharedTokens) continue;
    constexpr int64_t kTile = kTileCols<acc_t<T>>;
    T* out = static_cast<T*>(p.grad_weight) + row * p.cols;
    parallel_for(0, (p.cols + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kTile, last = end * kTile < p.cols ? end * kTile : p.cols;
      RowSum<T>(p, row).sum(first, last - first, out + first);
    });
  }
}

}  // namespace

void embedding(const EmbeddingParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    parallel_for(0, p.tokens, row_grain(p.cols), [&](int64_t b, int64_t e) { copy_rows<decltype(tag)>(p, b, e); });
  });
}

// A sort by counting: as long as the list of tokens and that of rows, whatever the order.
void embedding_segments(const EmbeddingSegmentsParams& p) {
  int64_t* starts = p.starts;
  std::memset(starts, 0, static_cast<size_t>(p.num_embeddings + 1) * sizeof(int64_t));
  for (int64_t token = 0; token < p.tokens; ++token) {
    const int64_t row = index_at(p.index, p.index_dtype, token);
    if (row != p.padding) ++starts[row];
  }
  int64_t total = 0;
  for (int64_t row = 0; row <= p.num_embeddings; ++row) {
    const int64_t count = starts[row];
    starts[row] = total;
    total += count;
  }
  // Each start moves to the end of its row, which is the start of the next one.
  for (int64_t token = 0; token < p.tokens; ++token) {
    const int64_t row = index_at(p.index, p.index_dtype, token);
    if (row != p.padding) p.order[starts[row]++] = token;
  }
  std::memmove(starts + 1, starts, static_cast<size_t>(p.num_embeddings) * sizeof(int64_t));
  starts[0] = 0;
}

void embedding_backward(const EmbeddingBackwardParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t units = p.num_embeddings + p.starts[p.num_embeddings];
    parallel_for(0, units, row_grain(p.cols), [&](int64_t b, int64_t e) { sum_rows<T>(p, b, e); });
    sum_shared_rows<T>(p);
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(embedding, EmbeddingParams)
WARPWRIGHT_CPU_LAUNCHER(embedding_segments, EmbeddingSegmentsParams)
WARPWRIGHT_CPU_LAUNCHER(embedding_backward, EmbeddingBackwardParams)
