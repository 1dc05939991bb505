// Gated activations on the CPU: one pass. Rows are cut into pieces, so that one long row keeps every thread busy.

#include "kernels/activation.h"

#include "cpu/parallel.h"
#include "cpu/vec_math.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// Columns of a piece: a few arrays of this many elements stay in the first-level cache.
constexpr int64_t kPiece = 2048;

struct Piece {
  int64_t row, first, count;
};

// Pieces are numbered row by row.
int64_t pieces_in_row(int64_t cols) { return (cols + kPiece - 1) / kPiece; }
Piece piece_at(int64_t index, int64_t cols) {
  const int64_t per_row = pieces_in_row(cols), first = index % per_row * kPiece;
  return {index / per_row, first, cols - first < kPiece ? cols - first : kPiece};
}

// A piece as contiguous memory, gathered into `scratch` when it is strided.
template <class T>
const T* piece_data(Rows rows, const Piece& piece, T* scratch) {
  rows.data = static_cast<T*>(rows.data) + piece.first * rows.col_stride;
  return row_data(rows, piece.row, piece.count, scratch);
}

template <class T>
void swiglu_pieces(const SwigluParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  Scratch<T> gate_piece(kPiece), up_piece(kPiece);
  for (int64_t index = begin; index < end; ++index) {
    const Piece piece = piece_at(index, p.cols);
    const T* gate = piece_data(p.gate, piece, gate_piece.data());
    const T* up = piece_data(p.up, piece, up_piece.data());
    T* out = static_cast<T*>(p.output) + piece.row * p.cols + piece.first;
    for_each_vector<A>(piece.count, [&](int64_t i, auto n) {
      const Vec<A> x = load(gate + i, n);
      store(out + i, x * vsigmoid(x) * load(up + i, n), n);
    });
  }
}

// With s = sigmoid(gate): grad_up = grad * gate * s, grad_gate = grad * up * s * (1 + gate * (1 - s)).
template <class T>
void swiglu_backward_pieces(const SwigluBackwardParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  Scratch<T> grad_piece(kPiece), gate_piece(kPiece), up_piece(kPiece);
  for (int64_t index = begin; index < end; ++index) {
    const Piece piece = piece_at(index, p.cols);
    const T* grad = piece_data(p.grad_output, piece, grad_piece.data());
    const T* gate = piece_data(p.gate, piece, gate_piece.data());
    const T* up = piece_data(p.up, piece, up_piece.data());
    const int64_t start = piece.row * p.cols + piece.first;
    T* grad_gate = static_cast<T*>(p.grad_gate) + start;
    T* grad_up = static_cast<T*>(p.grad_up) + start;
    for_each_vector<A>(piece.count, [&](int64_t i, auto n) {
      const Vec<A> dy = load(grad + i, n), x = load(gate + i, n), s = vsigmoid(x);
      store(grad_gate + i, dy * load(up + i, n) * s * (1 + x * (1 - s)), n);
      store(grad_up + i, dy * x * s, n);
    });
  }
}

int64_t piece_grain(int64_t cols) { return row_grain(cols < kPiece ? cols : kPiece); }

}  // namespace

void swiglu(const SwigluParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    parallel_for(0, p.rows * pieces_in_row(p.cols), piece_grain(p.cols),
                 [&](int64_t b, int64_t e) { swiglu_pieces<decltype(tag)>(p, b, e); });
  });
}

void swiglu_backward(const SwigluBackwardParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    parallel_for(0, p.rows * pieces_in_row(p.cols), piece_grain(p.cols),
                 [&](int64_t b, int64_t e) { swiglu_backward_pieces<decltype(tag)>(p, b, e); });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(swiglu, SwigluParams)
WARPWRIGHT_CPU_LAUNCHER(swiglu_backward, SwigluBackwardParams)
