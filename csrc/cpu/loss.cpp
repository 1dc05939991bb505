// Cross entropy on the CPU. A row is read for its maximum, for the sum of its exponentials and where the target spreads
// over the classes once more; it stays in the cache in between. Rows go to threads. Rows whose classes are strided are
// taken through the cache a tile at a time, so that each line of memory is fetched once for the neighbouring rows that
// share it.

#include "cpu/loss.h"

#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/vec_math.h"

WARPWRIGHT_ISA_BEGIN

namespace {

constexpr int64_t kTileRows = 32;

// Up to kTileRows rows as contiguous memory: in place where classes are neighbours, else copied to a tile. Without a
// tensor there are no rows.
template <class T>
class RowTile {
 public:
  RowTile(const Rows& rows, int64_t cols)
      : rows_(rows), cols_(cols), tile_(rows.col_stride == 1 ? 0 : kTileRows * cols) {}

  void move_to(int64_t first, int64_t count) {
    if (rows_.data == nullptr) return;
    count_ = count;
    for (int64_t r = 0; r < count; ++r) start_[r] = static_cast<T*>(rows_.data) + rows_.offset(first + r);
  }
  T* row(int64_t r) const {
    if (rows_.data == nullptr) return nullptr;
    return rows_.col_stride == 1 ? start_[r] : tile_.data() + r * cols_;
  }
  void read() const {
    if (rows_.col_stride == 1) return;
    for (int64_t c = 0; c < cols_; ++c) {
      for (int64_t r = 0; r < count_; ++r) tile_.data()[r * cols_ + c] = start_[r][c * rows_.col_stride];
    }
  }
  void write() const {
    if (rows_.col_stride == 1) return;
    for (int64_t c = 0; c < cols_; ++c) {
      for (int64_t r = 0; r < count_; ++r) start_[r][c * rows_.col_stride] = tile_.data()[r * cols_ + c];
    }
  }

 private:
  const Rows& rows_;
  const int64_t cols_;
  Scratch<T> tile_;
  T* start_[kTileRows];
  int64_t count_ = 0;
};

// Calls f(first, count) for tiles of the rows in [begin, end).
template <class F>
void for_each_tile(int64_t begin, int64_t end, const F& f) {
  for (int64_t first = begin; first < end; first += kTileRows)
    f(first, end - first < kTileRows ? end - first : kTileRows);
}

template <class A>
Vec<A> ones(Whole) {
  return splat<A>(1);
}
template <class A>
Vec<A> ones(int64_t count) {
  Vec<A> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = 1;
  return v;
}

// The masses of the classes, a in kernels/loss.h, without what a class as a target adds. P is the type of the target's
// probabilities, or void. Zero past the last class.
template <class A, class P>
struct Masses {
  const A* weight;
  const P* target;
  A spread, rest;  // label_smoothing / cols and 1 - label_smoothing

  Masses(const CrossEntropySettings& with, const void* weights, const P* row)
      : weight(static_cast<const A*>(weights)),
        target(row),
        spread(static_cast<A>(with.label_smoothing) / static_cast<A>(with.cols)),
        rest(1 - static_cast<A>(with.label_smoothing)) {}

  template <class Count>
  Vec<A> weights(int64_t i, Count n) const {
    return weight == nullptr ? ones<A>(n) : load(weight + i, n);
  }
  template <class Count>
  Vec<A> at(int64_t i, Count n) const {
    if constexpr (std::is_void_v<P>) {
      return spread * weights(i, n);
    } else {
      const Vec<A> p = __builtin_convertvector(load(target + i, n), Vec<A>);
      return (p * rest + spread) * weights(i, n);
    }
  }
  // What the target itself adds, where it is a class.
  A of_target(int64_t index) const { return weight == nullptr ? rest : rest * weight[index]; }
  bool spreads() const { return !std::is_void_v<P> || spread > 0; }
};

template <class A>
Vec<A> capped(Vec<A> x, A cap) {
  return cap * vtanh(x / cap);
}

// With m = max(y) and l = log(sum(exp(y - m))) the loss of class c is l + (m - y[c]), which keeps its digits where m is
// large. X is the type of the logits, or of capped ones.
template <class P, class X>
void forward_row(const CrossEntropyParams& p, int64_t row, const X* y, const P* probabilities) {
  using A = acc_t<X>;
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  const int64_t cols = p.with.cols;
  const Masses<A, P> masses(p.with, p.weight, probabilities);
  Vec<A> highest = splat<A>(kLowest);
  for_each_vector<A>(cols, [&](int64_t i, auto n) { highest = vmax(load(y + i, n, kLowest), highest); });
  const A max = reduce_max<A>(highest);
  Vec<A> exps{};
  for_each_vector<A>(cols, [&](int64_t i, auto n) { exps += vexp(load(y + i, n, kLowest) - max); });
  const A log_sum = vlog(splat<A>(reduce_add<A>(exps)))[0];
  A mass = 0, loss = 0;
  if (masses.spreads()) {
    Vec<A> sums{}, gaps{};
    for_each_vector<A>(cols, [&](int64_t i, auto n) {
      const Vec<A> a = masses.at(i, n);
      sums += a;
      gaps += a * (max - load(y + i, n, max));
    });
    mass = reduce_add<A>(sums);
    loss = mass * log_sum + reduce_add<A>(gaps);
  }
  if constexpr (std::is_void_v<P>) {
    const int64_t target = target_of(p.target, row);
    const A own = masses.of_target(target);
    mass += own;
    loss += own * (log_sum + (max - to_acc(y[target])));
  }
  const A lse = max + log_sum;
  if (p.with.z_loss > 0) loss += static_cast<A>(p.with.z_loss) * lse * lse;
  static_cast<A*>(p.max)[row] = max;
  static_cast<A*>(p.log_sum)[row] = log_sum;
  if (p.mass != nullptr) static_cast<A*>(p.mass)[row] = mass;
  store_as<A>(p.row_loss_dtype, p.row_loss, row, loss);
}

template <class T, class P>
void forward_rows(const CrossEntropyParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using Stored = std::conditional_t<std::is_void_v<P>, T, P>;
  RowTile<T> input(p.input, p.with.cols);
  const Rows none{}, &spread = std::is_void_v<P> ? none : p.target;
  RowTile<Stored> target(spread, p.with.cols);
  const A cap = static_cast<A>(p.with.softcap);
  Scratch<A> capped_row(cap > 0 ? p.with.cols : 0);
  for_each_tile(begin, end, [&](int64_t first, int64_t count) {
    input.move_to(first, count);
    input.read();
    target.move_to(first, count);
    target.read();
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = first + r;
      if (std::is_void_v<P> && target_of(p.target, row) == p.with.ignore_index) {
        static_cast<A*>(p.max)[row] = static_cast<A*>(p.log_sum)[row] = 0;
        if (p.mass != nullptr) static_cast<A*>(p.mass)[row] = 0;
        store_as<A>(p.row_loss_dtype, p.row_loss, row, 0);
        continue;
      }
      const T* x = input.row(r);
      const P* probabilities = target.row(r);
      if (!(cap > 0)) {
        forward_row<P>(p, row, x, probabilities);
        continue;
      }
      A* y = capped_row.data();
      for_each_vector<A>(p.with.cols, [&](int64_t i, auto n) { store(y + i, capped(load(x + i, n), cap), n); });
      forward_row<P>(p, row, const_cast<const A*>(y), probabilities);
    }
  });
}

// grad_input = grad * (softmax(y) * (mass + 2 z_loss lse) - a), times the cap's derivative 1 - (y / softcap)^2;
// grad_target = grad * weight * (1 - label_smoothing) * (lse - y). The row may be written where it is read.
template <class T, class P>
void backward_row(const CrossEntropyBackwardParams& p, int64_t row, const T* x, const P* probabilities, T* out,
                  P* out_target) {
  using A = acc_t<T>;
  const int64_t cols = p.with.cols;
  int64_t target = -1;
  if constexpr (std::is_void_v<P>) {
    target = target_of(p.target, row);
    if (target == p.with.ignore_index) {
      for_each_vector<A>(cols, [&](int64_t i, auto n) { store(out + i, Vec<A>{}, n); });
      return;
    }
  }
  const Masses<A, P> masses(p.with, p.weight, probabilities);
  A scale = load_as<A>(p.grad_loss_dtype, p.grad_loss.data, p.grad_loss.offset(row));
  if (p.total != nullptr) scale /= *static_cast<const A*>(p.total);
  const A max = static_cast<const A*>(p.max)[row], log_sum = static_cast<const A*>(p.log_sum)[row];
  const A cap = static_cast<A>(p.with.softcap);
  const A mass = p.mass == nullptr ? 1 : static_cast<const A*>(p.mass)[row];
  const A factor = mass + 2 * static_cast<A>(p.with.z_loss) * (max + log_sum);
  const auto logits = [&](Vec<A> v) { return cap > 0 ? capped(v, cap) : v; };
  const auto gradient = [&](Vec<A> y, Vec<A> a) {
    const Vec<A> grad = scale * (vexp((y - max) - log_sum) * factor - a);
    return cap > 0 ? grad * (1 - (y / cap) * (y / cap)) : grad;
  };
  A at_target = 0;
  if constexpr (std::is_void_v<P>) {
    const A a = masses.at(target, int64_t{1})[0] + masses.of_target(target);
    at_target = gradient(logits(splat<A>(to_acc(x[target]))), splat<A>(a))[0];
  }
  for_each_vector<A>(cols, [&](int64_t i, auto n) {
    const Vec<A> y = logits(load(x + i, n));
    if (out != nullptr) store(out + i, gradient(y, masses.at(i, n)), n);
    if constexpr (!std::is_void_v<P>) {
      const Vec<A> grad = scale * masses.rest * masses.weights(i, n) * (log_sum + (max - y));
      if (out_target != nullptr) store(out_target + i, __builtin_convertvector(grad, Vec<acc_t<P>>), n);
    }
  });
  if (std::is_void_v<P>) out[target] = from_acc<T>(at_target);
}

template <class T, class P>
void backward_rows(const CrossEntropyBackwardParams& p, int64_t begin, int64_t end) {
  using Stored = std::conditional_t<std::is_void_v<P>, T, P>;
  RowTile<T> input(p.input, p.with.cols), grad_input(p.grad_input, p.with.cols);
  const Rows none{}, &spread = std::is_void_v<P> ? none : p.target;
  RowTile<Stored> target(spread, p.with.cols), grad_target(p.grad_target, p.with.cols);
  for_each_tile(begin, end, [&](int64_t first, int64_t count) {
    input.move_to(first, count);
    target.move_to(first, count);
    grad_input.move_to(first, count);
    grad_target.move_to(first, count);
    input.read();
    target.read();
    for (int64_t r = 0; r < count; ++r) {
      const P* probabilities = target.row(r);
      P* out_target = grad_target.row(r);
      backward_row<T, P>(p, first + r, input.row(r), probabilities, grad_input.row(r), out_target);
    }
    grad_input.write();
    grad_target.write();
  });
}

// Calls f with a value of the logits' type and a pointer to that of the probabilities, to void where there are none.
template <class F>
void visit_types(const CrossEntropySettings& with, const F& f) {
  visit_float(with.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (!with.probabilities) return f(tag, static_cast<void*>(nullptr));
    if (with.target_dtype == with.dtype) return f(tag, static_cast<T*>(nullptr));
    f(tag, static_cast<acc_t<T>*>(nullptr));
  });
}

}  // namespace

void cross_entropy(const CrossEntropyParams& p) {
  visit_types(p.with, [&](auto tag, auto* probabilities) {
    using P = std::remove_pointer_t<decltype(probabilities)>;
    const auto rows = [&](int64_t b, int64_t e) { forward_rows<decltype(tag), P>(p, b, e); };
    parallel_for(0, p.with.rows, row_grain(p.with.cols), rows);
  });
}

void cross_entropy_backward(const CrossEntropyBackwardParams& p) {
  visit_types(p.with, [&](auto tag, auto* probabilities) {
    using P = std::remove_pointer_t<decltype(probabilities)>;
    const auto rows = [&](int64_t b, int64_t e) { backward_rows<decltype(tag), P>(p, b, e); };
    parallel_for(0, p.with.rows, row_grain(p.with.cols), rows);
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(cross_entropy, CrossEntropyParams)
WARPWRIGHT_CPU_LAUNCHER(cross_entropy_backward, CrossEntropyBackwardParams)
