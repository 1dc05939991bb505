// Activations, gated or not, on the CPU: one pass. Rows are cut into pieces, so that one long row keeps every thread
// busy; the gradients of biases go through the fixed partial sums of kernels/activation.h.

#include "kernels/activation.h"

#include "cpu/fast_math.h"
#include "cpu/partials.h"

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

// A piece of a row as contiguous memory, gathered into `scratch` when it is strided.
template <class T>
const T* piece_data(Rows rows, int64_t row, const Piece& piece, T* scratch) {
  rows.data = static_cast<T*>(rows.data) + piece.first * rows.col_stride;
  return row_data(rows, row, piece.count, scratch);
}

// From the first column of a piece on; null for null.
template <class T>
T* from_piece(T* data, const Piece& piece) {
  return data == nullptr ? nullptr : data + piece.first;
}

// Forms known at compile time make loops without a branch; the rarer ones share a loop.
template <Activation kActivation, bool kSquared = false>
struct Fixed {
  static constexpr Activation activation = kActivation;
  static constexpr bool squared = kSquared;
};
struct Other {
  Activation activation;
  static constexpr bool squared = false;
};

template <class F>
void visit_form(const ActivationForm& form, const F& f) {
  switch (form.activation) {
    case Activation::kRelu: return form.squared ? f(Fixed<Activation::kRelu, true>{}) : f(Fixed<Activation::kRelu>{});
    case Activation::kGelu: return f(Fixed<Activation::kGelu>{});
    case Activation::kGeluTanh: return f(Fixed<Activation::kGeluTanh>{});
    case Activation::kSilu: return f(Fixed<Activation::kSilu>{});
    case Activation::kSigmoid: return f(Fixed<Activation::kSigmoid>{});
    default: return f(Other{form.activation});
  }
}

template <class T, class F>
Vec<acc_t<T>> value_of(const F& form, Vec<acc_t<T>> x) {
  using A = acc_t<T>;
  const Vec<A> value = fast_activate<kNarrow<T>>(form.activation, x);
  return form.squared ? value * value : value;
}

// grad times the derivative at x. Where relu is zero its gradient is, even of an infinite one, and NaN lets gradients
// pass: as torch.
template <class T, class F>
Vec<acc_t<T>> gradient_of(const F& form, Vec<acc_t<T>> x, Vec<acc_t<T>> grad) {
  using A = acc_t<T>;
  if (form.activation == Activation::kRelu) {
    const Vec<A> g = form.squared ? A(2) * x * grad : grad;
    return x <= A(0) ? Vec<A>{} : g;
  }
  const Vec<A> saved = needs_preact(form.activation) ? x : fast_activate<kNarrow<T>>(form.activation, x);
  return grad * fast_activation_grad<kNarrow<T>>(form.activation, saved);
}

// `kPlain`: without biases, and without a second factor.
template <bool kPlain, class T, class F>
void forward_pieces(const GluParams& p, const F& form, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  Scratch<T> gate_piece(kPiece), up_piece(kPiece);
  const bool gated = p.up.data != nullptr;
  for (int64_t index = begin; index < end; ++index) {
    const Piece piece = piece_at(index, p.cols);
    const T* gate = piece_data(p.gate, piece.row, piece, gate_piece.data());
    const T* up = gated ? piece_data(p.up, piece.row, piece, up_piece.data()) : nullptr;
    const T* gate_bias = from_piece(static_cast<const T*>(p.gate_bias), piece);
    const T* up_bias = from_piece(static_cast<const T*>(p.up_bias), piece);
    T* out = static_cast<T*>(p.output) + piece.row * p.cols + piece.first;
    write_vectors<A>(out, piece.count, [&](int64_t i, auto n) {
      Vec<A> x = load(gate + i, n);
      if constexpr (kPlain) return value_of<T>(form, x);
      if (gate_bias != nullptr) x += load(gate_bias + i, n);
      Vec<A> value = value_of<T>(form, x);
      if (gated) {
        Vec<A> factor = load(up + i, n);
        if (up_bias != nullptr) factor += load(up_bias + i, n);
        value *= factor;
      }
      return value;
    });
  }
}

// The sums of a piece's columns, zeroed; null without partials.
template <class A>
A* sums_of(void* partials, const Piece& piece, int64_t cols) {
  if (partials == nullptr) return nullptr;
  A* sums = static_cast<A*>(partials) + piece.row * cols + piece.first;
  for (int64_t i = 0; i < piece.count; ++i) sums[i] = 0;
  return sums;
}

// grad_gate = grad * (up + up_bias) * form'(x), grad_up = grad * form(x), with x = gate + gate_bias. Pieces are those
// of groups of rows.
template <class T, class F>
void backward_pieces(const GluBackwardParams& p, const F& form, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  Scratch<T> grad_piece(kPiece), gate_piece(kPiece), up_piece(kPiece);
  const bool gated = p.up.data != nullptr;
  for (int64_t index = begin; index < end; ++index) {
    const Piece piece = piece_at(index, p.cols);
    const T* gate_bias = from_piece(static_cast<const T*>(p.gate_bias), piece);
    const T* up_bias = from_piece(static_cast<const T*>(p.up_bias), piece);
    A* gate_sums = sums_of<A>(p.gate_partials, piece, p.cols);
    A* up_sums = sums_of<A>(p.up_partials, piece, p.cols);
    const int64_t last = p.rows * (piece.row + 1) / p.groups;
    for (int64_t row = p.rows * piece.row / p.groups; row < last; ++row) {
      const T* grad = piece_data(p.grad_output, row, piece, grad_piece.data());
      const T* gate = piece_data(p.gate, row, piece, gate_piece.data());
      const T* up = gated ? piece_data(p.up, row, piece, up_piece.data()) : nullptr;
      const int64_t start = row * p.cols + piece.first;
      T* grad_gate = p.grad_gate == nullptr ? nullptr : static_cast<T*>(p.grad_gate) + start;
      T* grad_up = p.grad_up == nullptr ? nullptr : static_cast<T*>(p.grad_up) + start;
      for_each_vector<A>(piece.count, [&](int64_t i, auto n) {
        const Vec<A> dy = load(grad + i, n);
        Vec<A> x = load(gate + i, n), dx = dy;
        if (gate_bias != nullptr) x += load(gate_bias + i, n);
        if (gated) {
          Vec<A> factor = load(up + i, n);
          if (up_bias != nullptr) factor += load(up_bias + i, n);
          dx *= factor;
          const Vec<A> du = dy * value_of<T>(form, x);
          if (grad_up != nullptr) store(grad_up + i, du, n);
          if (up_sums != nullptr) store(up_sums + i, load(up_sums + i, n) + du, n);
        }
        dx = gradient_of<T>(form, x, dx);
        if (grad_gate != nullptr) store(grad_gate + i, dx, n);
        if (gate_sums != nullptr) store(gate_sums + i, load(gate_sums + i, n) + dx, n);
      });
    }
  }
}

int64_t piece_grain(int64_t cols, int64_t rows) { return row_grain((cols < kPiece ? cols : kPiece) * rows); }

}  // namespace

void glu(const GluParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool plain = p.up.data == nullptr && p.gate_bias == nullptr;
    visit_form(p.form, [&](auto form) {
      parallel_for(0, p.rows * pieces_in_row(p.cols), piece_grain(p.cols, 1), [&](int64_t b, int64_t e) {
        plain ? forward_pieces<true, T>(p, form, b, e) : forward_pieces<false, T>(p, form, b, e);
      });
    });
  });
}

void glu_backward(const GluBackwardParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = acc_t<T>;
    const int64_t rows = p.groups == 0 ? 1 : p.rows / p.groups;
    visit_form(p.form, [&](auto form) {
      parallel_for(0, p.groups * pieces_in_row(p.cols), piece_grain(p.cols, rows),
                   [&](int64_t b, int64_t e) { backward_pieces<T>(p, form, b, e); });
    });
    const auto add_up = [&](const void* partials, void* out) {
      if (out != nullptr) reduce_partials<T>(static_cast<const A*>(partials), p.groups, p.cols, static_cast<T*>(out));
    };
    add_up(p.gate_partials, p.grad_gate_bias);
    add_up(p.up_partials, p.grad_up_bias);
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(glu, GluParams)
WARPWRIGHT_CPU_LAUNCHER(glu_backward, GluBackwardParams)
