// Softmax and its logarithm on the CPU. A row is read once where it is reduced: piece by piece, each with its own
// maximum, whose exponentials are kept and brought to the row's maximum when it is known. Along another dimension than
// the last, the lanes of a vector are neighbouring rows.

#include "kernels/softmax.h"

#include <type_traits>

#include "cpu/fast_math.h"
#include "cpu/parallel.h"

WARPWRIGHT_ISA_BEGIN

namespace {

constexpr int64_t kPiece = 4096;  // Columns whose maximum and exponentials are taken while they lie in the first cache.

template <class A>
constexpr A kMinusInfinity = -std::numeric_limits<A>::infinity();

// Where one row is, and what is left of it.
template <class T>
struct MaskRow {
  using A = acc_t<T>;
  const T* terms = nullptr;       // What is added; null for nothing.
  const uint8_t* keep = nullptr;  // What is kept; null for everything.
  int64_t stride = 1;

  MaskRow(const SoftmaxBounds& bounds, int64_t row) {
    if (bounds.kind == SoftmaxMask::kNone) return;
    stride = bounds.mask.col_stride;
    const int64_t start = bounds.mask.offset(row);
    if (bounds.kind == SoftmaxMask::kAdd) terms = static_cast<const T*>(bounds.mask.data) + start;
    if (bounds.kind == SoftmaxMask::kKeep) keep = static_cast<const uint8_t*>(bounds.mask.data) + start;
  }

  // `kept` where the mask keeps an element, `dropped` elsewhere.
  Vec<A> select(int64_t i, int64_t count, Vec<A> kept, A dropped) const {
    for (int64_t lane = 0; lane < count; ++lane) kept[lane] = keep[(i + lane) * stride] != 0 ? kept[lane] : dropped;
    return kept;
  }
  Vec<A> add(int64_t i, int64_t count, Vec<A> x) const {
    for (int64_t lane = 0; lane < count; ++lane) x[lane] += to_acc(terms[(i + lane) * stride]);
    return x;
  }
};

template <class A>
int64_t lanes(Whole) {
  return kLanes<A>;
}
template <class A>
int64_t lanes(int64_t count) {
  return count;
}

// What is known of all rows at compile time: the loops that run most have no mask and no scale.
template <class T, bool kPlain>
struct Logits {
  using A = acc_t<T>;
  const T* x;
  const MaskRow<T>& mask;
  A scale;

  // scale * x, and what the mask makes of it; lanes past the end are minus infinity.
  template <class N>
  Vec<A> at(int64_t i, N n) const {
    Vec<A> z = load(x + i, n, kMinusInfinity<A>);
    if constexpr (kPlain) return z;
    z = z * scale;
    if (mask.terms != nullptr) z = mask.add(i, lanes<A>(n), z);
    if (mask.keep != nullptr) z = mask.select(i, lanes<A>(n), z, kMinusInfinity<A>);
    for (int64_t lane = lanes<A>(n); lane < kLanes<A>; ++lane) z[lane] = kMinusInfinity<A>;
    return z;
  }
};

// exp(z - origin), as a power of two: see cpu/fast_math.h.
template <class T, class O>
Vec<acc_t<T>> exponential(Vec<acc_t<T>> z, O origin) {
  using A = acc_t<T>;
  constexpr A kScale = A(1.4426950408889634074);
  return vexp2<!std::is_same_v<T, A>>((z - origin) * kScale);
}

template <class A, class Term>
A max_of_vectors(int64_t count, const Term& term) {
  constexpr int kMaxima = 4;
  Vec<A> maxima[kMaxima];
  for (Vec<A>& each : maxima) each = splat(kMinusInfinity<A>);
  int64_t i = 0;
  for (; i + kMaxima * kLanes<A> <= count; i += kMaxima * kLanes<A>) {
    for (int k = 0; k < kMaxima; ++k) maxima[k] = vmax(term(i + k * kLanes<A>, Whole{}), maxima[k]);
  }
  for_each_vector<A>(count - i, [&](int64_t rest, auto n) { maxima[0] = vmax(term(i + rest, n), maxima[0]); });
  return reduce_max<A>(vmax(vmax(maxima[0], maxima[1]), vmax(maxima[2], maxima[3])));
}

// The row's maximum and its sum of exponentials; `exponentials` gets those of each piece, less the maximum in `maxima`.
template <class T>
struct RowSum {
  acc_t<T> max, sum;
};

template <bool kKeep, class T, bool kPlain>
RowSum<T> reduce_row(const Logits<T, kPlain>& logits, int64_t count, acc_t<T>* exponentials, acc_t<T>* maxima) {
  using A = acc_t<T>;
  RowSum<T> row{kMinusInfinity<A>, 0};
  for (int64_t first = 0; first < count; first += kPiece) {
    const int64_t size = count - first < kPiece ? count - first : kPiece;
    const A max = max_of_vectors<A>(size, [&](int64_t i, auto n) { return logits.at(first + i, n); });
    // A piece without any element left has no sum, whatever the rest of the row is.
    const A origin = max == kMinusInfinity<A> ? A(0) : max;
    const A sum = sum_vectors<A>(size, [&](int64_t i, auto n) {
      const Vec<A> e = exponential<T>(logits.at(first + i, n), origin);
      if constexpr (kKeep) store(exponentials + first + i, e, n);
      return e;
    });
    if constexpr (kKeep) maxima[first / kPiece] = max;
    const A higher = max > row.max ? max : row.max;
    if (higher > kMinusInfinity<A>) row.sum = row.sum * std::exp(row.max - higher) + sum * std::exp(origin - higher);
    if (sum != sum) row.sum = sum;  // NaN.
    row.max = higher;
  }
  return row;
}

template <class T>
void write_softmax(const acc_t<T>* exponentials, const acc_t<T>* maxima, const RowSum<T>& row, int64_t count, T* out,
                   int64_t cols) {
  using A = acc_t<T>;
  for (int64_t first = 0; first < count; first += kPiece) {
    const int64_t size = count - first < kPiece ? count - first : kPiece;
    const A factor = std::exp(maxima[first / kPiece] - row.max) / row.sum;
    for_each_vector<A>(
        size, [&](int64_t i, auto n) { store(out + first + i, load(exponentials + first + i, n) * factor, n); });
  }
  const T rest = from_acc<T>(A(0) * std::exp(kMinusInfinity<A> - row.max) / row.sum);
  for (int64_t i = count; i < cols; ++i) out[i] = rest;
}

template <class T, bool kPlain>
void write_log_softmax(const Logits<T, kPlain>& logits, const RowSum<T>& row, int64_t count, T* out, int64_t cols) {
  using A = acc_t<T>;
  const A log_sum = std::log(row.sum);
  for_each_vector<A>(count, [&](int64_t i, auto n) { store(out + i, logits.at(i, n) - row.max - log_sum, n); });
  const T rest = from_acc<T>(kMinusInfinity<A> - row.max - log_sum);
  for (int64_t i = count; i < cols; ++i) out[i] = rest;
}

// Where a row is written: where it lies, or `scratch`, from which `scatter` takes it.
template <class T>
T* output_row(const Rows& rows, int64_t row, T* scratch) {
  return rows.col_stride == 1 ? static_cast<T*>(rows.data) + rows.offset(row) : scratch;
}
template <class T>
void scatter(const Rows& rows, int64_t row, int64_t cols, const T* values) {
  if (rows.col_stride == 1) return;
  T* out = static_cast<T*>(rows.data) + rows.offset(row);
  for (int64_t i = 0; i < cols; ++i) out[i * rows.col_stride] = values[i];
}

template <class T, bool kPlain>
void forward_rows(const SoftmaxParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr bool kInPlace = std::is_same_v<T, A>;  // Exponentials lie in the output itself.
  Scratch<T> input_row(p.input.col_stride == 1 ? 0 : p.cols), written(p.output.col_stride == 1 ? 0 : p.cols);
  Scratch<A> kept(p.log || kInPlace ? 0 : p.cols), maxima(p.cols / kPiece + 1);
  for (int64_t row = begin; row < end; ++row) {
    const MaskRow<T> mask(p.bounds, row);
    const T* x = row_data(p.input, row, p.cols, input_row.data());
    const Logits<T, kPlain> logits{x, mask, static_cast<A>(p.scale)};
    T* out = output_row(p.output, row, written.data());
    const int64_t count = p.bounds.visible(row);
    if (p.log) {
      write_log_softmax(logits, reduce_row<false>(logits, count, nullptr, nullptr), count, out, p.cols);
    } else {
      A* exponentials = kept.data();
      if constexpr (kInPlace) exponentials = out;
      const RowSum<T> sum = reduce_row<true>(logits, count, exponentials, maxima.data());
      write_softmax<T>(exponentials, maxima.data(), sum, count, out, p.cols);
    }
    scatter(p.output, row, p.cols, out);
  }
}

template <class T, bool kLog>
void backward_rows(const SoftmaxBackwardParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const A scale = static_cast<A>(p.scale);
  Scratch<T> grad_row(p.grad_output.col_stride == 1 ? 0 : p.cols), y_row(p.output.col_stride == 1 ? 0 : p.cols);
  Scratch<T> written(p.grad_input.col_stride == 1 ? 0 : p.cols);
  for (int64_t row = begin; row < end; ++row) {
    const T* grad = row_data(p.grad_output, row, p.cols, grad_row.data());
    const T* y = row_data(p.output, row, p.cols, y_row.data());
    T* out = output_row(p.grad_input, row, written.data());
    const MaskRow<T> mask(p.bounds, row);
    const int64_t count = p.bounds.visible(row);
    const A dot = sum_vectors<A>(p.cols, [&](int64_t i, auto n) {
      const Vec<A> g = load(grad + i, n);
      return kLog ? g : g * load(y + i, n);
    });
    for_each_vector<A>(count, [&](int64_t i, auto n) {
      const Vec<A> g = load(grad + i, n), value = load(y + i, n);
      Vec<A> dx = (kLog ? g - exponential<T>(value, A(0)) * dot : value * (g - dot)) * scale;
      if (mask.keep != nullptr) dx = mask.select(i, lanes<A>(n), dx, A(0));
      store(out + i, dx, n);
    });
    for (int64_t i = count; i < p.cols; ++i) out[i] = from_acc<T>(A(0));
    scatter(p.grad_input, row, p.cols, out);
  }
}

// ---- along another dimension than the last ----

// `width` neighbouring rows from the first one on, whose elements step by `stride`.
template <class T>
struct Panel {
  T* data;
  int64_t stride;

  Panel(const Rows& rows, int64_t row) : data(static_cast<T*>(rows.data) + rows.offset(row)), stride(rows.col_stride) {}
  T* at(int64_t col) const { return data + col * stride; }
};

// Rows of a panel: as many as keep it in the second-level cache, and whole cache lines.
int64_t panel_width(int64_t cols, int64_t inner) {
  constexpr int64_t kElements = 32768, kLeast = 64;
  const int64_t width = kElements / cols / kLeast * kLeast;
  return width < kLeast ? (inner < kLeast ? inner : kLeast) : (width < inner ? width : inner);
}

template <class T>
void forward_panel(const SoftmaxParams& p, int64_t row, int64_t width, acc_t<T>* exponentials, acc_t<T>* max,
                   acc_t<T>* sum) {
  using A = acc_t<T>;
  const A scale = static_cast<A>(p.scale);
  const Panel<const T> x(p.input, row);
  const Panel<T> out(p.output, row);
  for_each_vector<A>(width, [&](int64_t i, auto n) {
    Vec<A> highest = splat(kMinusInfinity<A>);
    for (int64_t col = 0; col < p.cols; ++col) highest = vmax(load(x.at(col) + i, n) * scale, highest);
    store(max + i, highest, n);
    Vec<A> total{};
    for (int64_t col = 0; col < p.cols; ++col) {
      const Vec<A> e = exponential<T>(load(x.at(col) + i, n) * scale, highest);
      if (!p.log) store(exponentials + col * width + i, e, n);
      total += e;
    }
    store(sum + i, p.log ? vlog(total) : A(1) / total, n);
  });
  for (int64_t col = 0; col < p.cols; ++col) {
    for_each_vector<A>(width, [&](int64_t i, auto n) {
      const Vec<A> s = load(sum + i, n);
      store(out.at(col) + i,
            p.log ? load(x.at(col) + i, n) * scale - load(max + i, n) - s : load(exponentials + col * width + i, n) * s,
            n);
    });
  }
}

template <class T>
void backward_panel(const SoftmaxBackwardParams& p, int64_t row, int64_t width) {
  using A = acc_t<T>;
  const A scale = static_cast<A>(p.scale);
  const Panel<const T> grad(p.grad_output, row), y(p.output, row);
  const Panel<T> out(p.grad_input, row);
  for_each_vector<A>(width, [&](int64_t i, auto n) {
    Vec<A> dot{};
    for (int64_t col = 0; col < p.cols; ++col) {
      const Vec<A> g = load(grad.at(col) + i, n);
      dot += p.log ? g : g * load(y.at(col) + i, n);
    }
    for (int64_t col = 0; col < p.cols; ++col) {
      const Vec<A> g = load(grad.at(col) + i, n), value = load(y.at(col) + i, n);
      store(out.at(col) + i, (p.log ? g - exponential<T>(value, A(0)) * dot : value * (g - dot)) * scale, n);
    }
  });
}

// Rows of a panel, or 0 where rows are taken one by one.
int64_t common_panel(const SoftmaxBounds& bounds, const Rows& a, const Rows& b, const Rows& c) {
  constexpr int64_t kLeast = 8;  // Fewer would leave most lanes of a vector empty.
  const int64_t inner = panel_columns(a);
  const bool plain = inner >= kLeast && bounds.kind == SoftmaxMask::kNone && bounds.causal_rows == 0;
  return plain && panel_columns(b) == inner && panel_columns(c) == inner ? inner : 0;
}

// body(row, width) for every panel of matrices of `inner` columns, `width` at a time.
template <class Body>
void for_each_panel(int64_t rows, int64_t cols, int64_t inner, int64_t width, const Body& body) {
  const int64_t across = (inner + width - 1) / width;
  parallel_for(0, rows / inner * across, row_grain(cols * width), [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index % across * width;
      body(index / across * inner + first, inner - first < width ? inner - first : width);
    }
  });
}

}  // namespace

void softmax(const SoftmaxParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = acc_t<T>;
    const int64_t inner = common_panel(p.bounds, p.input, p.output, p.output);
    const bool plain = p.bounds.kind == SoftmaxMask::kNone && p.scale == 1;
    if (inner == 0) {
      return parallel_for(0, p.rows, row_grain(p.cols), [&](int64_t b, int64_t e) {
        plain ? forward_rows<T, true>(p, b, e) : forward_rows<T, false>(p, b, e);
      });
    }
    const int64_t most = panel_width(p.cols, inner);
    for_each_panel(p.rows, p.cols, inner, most, [&](int64_t row, int64_t width) {
      Scratch<A> exponentials(p.log ? 0 : p.cols * width), max(width), sum(width);
      forward_panel<T>(p, row, width, exponentials.data(), max.data(), sum.data());
    });
  });
}

void softmax_backward(const SoftmaxBackwardParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t inner = common_panel(p.bounds, p.grad_output, p.output, p.grad_input);
    if (inner == 0) {
      return parallel_for(0, p.rows, row_grain(p.cols), [&](int64_t b, int64_t e) {
        p.log ? backward_rows<T, true>(p, b, e) : backward_rows<T, false>(p, b, e);
      });
    }
    for_each_panel(p.rows, p.cols, inner, panel_width(p.cols, inner),
                   [&](int64_t row, int64_t width) { backward_panel<T>(p, row, width); });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(softmax, SoftmaxParams)
WARPWRIGHT_CPU_LAUNCHER(softmax_backward, SoftmaxBackwardParams)
