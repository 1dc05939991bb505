// Dropout with an optional residual on the CPU: the bits are made in registers, and nothing is kept of them.

#include "kernels/dropout.h"

#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/philox.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// Columns of a piece, so that one long row keeps every thread busy: a multiple of kWords for every vector.
constexpr int64_t kPiece = 2048;
int64_t pieces_in_row(int64_t cols) { return (cols + kPiece - 1) / kPiece; }

// scale where a word reaches the threshold, else 0.
inline Vec<float> factors_of(U32s words, uint32_t threshold, float scale) {
  return words >= threshold ? splat(scale) : Vec<float>{};
}

// out = residual + x * factors over a piece, in whose row it starts at column `first`.
template <class T>
void drop_piece(const DropoutParams& p, int64_t seed, int64_t row, int64_t first, int64_t count, const T* x,
                const T* residual, T* out) {
  using A = acc_t<T>;
  const A scale = static_cast<A>(p.scale);
  for (int64_t start = 0; start < count; start += kWords) {
    U32s words[kPhiloxWords];
    philox_words(seed, row, (first + start) / kPhiloxWords, p.offset, words);
    const auto finish = [&](int64_t i, Vec<A> factor, auto n) {
      Vec<A> y = load(x + i, n) * factor;
      if (residual != nullptr) y += load(residual + i, n);
      store(out + i, y, n);
    };
    const int64_t here = count - start < kWords ? count - start : kWords;
    if constexpr (std::is_same_v<A, float>) {
      for (int64_t k = 0; k * kFloatLanes < here; ++k) {
        const Vec<A> factor = factors_of(words[k], p.threshold, scale);
        const int64_t left = here - k * kFloatLanes, i = start + k * kFloatLanes;
        left >= kFloatLanes ? finish(i, factor, Whole{}) : finish(i, factor, left);
      }
    } else {
      for (int64_t i = 0; i < here; ++i) {
        const bool kept = words[i / kFloatLanes][i % kFloatLanes] >= p.threshold;
        finish(start + i, splat(kept ? scale : A(0)), int64_t{1});
      }
    }
  }
}

template <class T>
const T* piece_data(Rows rows, int64_t row, int64_t first, int64_t count, T* scratch) {
  rows.data = static_cast<T*>(rows.data) + first * rows.col_stride;
  return row_data(rows, row, count, scratch);
}

template <class T>
void drop_pieces(const DropoutParams& p, int64_t begin, int64_t end) {
  Scratch<T> input_piece(kPiece), residual_piece(kPiece);
  const int64_t seed = *static_cast<const int64_t*>(p.seed), per_row = pieces_in_row(p.cols);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t row = index / per_row, first = index % per_row * kPiece;
    const int64_t count = p.cols - first < kPiece ? p.cols - first : kPiece;
    const T* x = piece_data(p.input, row, first, count, input_piece.data());
    const T* residual =
        p.residual.data == nullptr ? nullptr : piece_data(p.residual, row, first, count, residual_piece.data());
    drop_piece(p, seed, row, first, count, x, residual, static_cast<T*>(p.output) + row * p.cols + first);
  }
}

}  // namespace

void dropout_add(const DropoutParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    parallel_for(0, p.rows * pieces_in_row(p.cols), row_grain(p.cols < kPiece ? p.cols : kPiece),
                 [&](int64_t b, int64_t e) { drop_pieces<decltype(tag)>(p, b, e); });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(dropout_add, DropoutParams)
