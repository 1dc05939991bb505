// The losses of single elements on the CPU: one pass, a piece of a row at a time. The sums of the pieces are those of
// csrc/kernels/pointwise_loss.h, whatever the threads.

#include "kernels/pointwise_loss.h"

#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/vec_math.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// log(1 + e) for e in [0, 1]: what the sum lost is made up for by the quotient.
template <class A>
Vec<A> log_one_plus(Vec<A> e) {
  const Vec<A> sum = 1 + e, seen = sum - 1;
  return seen == 0 ? e : vlog(sum) * (e / seen);
}

template <class A>
Vec<A> magnitude(Vec<A> x) {
  return x < 0 ? -x : x;
}
// log(1 + exp(-x))
template <class A>
Vec<A> softplus_of_minus(Vec<A> x) {
  return log_one_plus<A>(vexp(-magnitude<A>(x))) + (x < 0 ? -x : (x == x ? Vec<A>{} : x));
}

template <PointwiseLoss kKind, class A>
Vec<A> loss_of(Vec<A> x, Vec<A> t, Vec<A> v) {
  if constexpr (kKind == PointwiseLoss::kBinaryCrossEntropy) {
    return (1 - t) * x + (1 + (v - 1) * t) * softplus_of_minus<A>(x);
  } else if constexpr (kKind == PointwiseLoss::kKlDiv) {
    return (t == 0 ? Vec<A>{} : t * vlog(t)) - t * x;
  } else {
    return vexp(t) * (t - x);
  }
}

template <PointwiseLoss kKind, class A>
Vec<A> grad_input_of(Vec<A> x, Vec<A> t, Vec<A> v) {
  if constexpr (kKind == PointwiseLoss::kBinaryCrossEntropy) {
    return (1 + (v - 1) * t) * vsigmoid(x) - v * t;
  } else {
    return kKind == PointwiseLoss::kKlDiv ? -t : -vexp(t);
  }
}

template <PointwiseLoss kKind, class A>
Vec<A> grad_target_of(Vec<A> x, Vec<A> t, Vec<A> v) {
  if constexpr (kKind == PointwiseLoss::kBinaryCrossEntropy) {
    return (v - 1) * softplus_of_minus<A>(x) - x;
  } else if constexpr (kKind == PointwiseLoss::kKlDiv) {
    return (t == 0 ? Vec<A>{} : vlog(t)) + t / t - x;
  } else {
    return vexp(t) * (t - x) + vexp(t);
  }
}

// A piece of a row as contiguous memory, gathered where it is strided; null without a tensor.
template <class T>
class PieceReader {
 public:
  PieceReader(const Rows& rows)
      : rows_(rows), scratch_(rows.data == nullptr || rows.col_stride == 1 ? 0 : kLossPiece) {}
  const T* at(int64_t row, int64_t first, int64_t count) const {
    if (rows_.data == nullptr) return nullptr;
    Rows moved = rows_;
    moved.data = static_cast<T*>(rows_.data) + first * rows_.col_stride;
    return row_data(moved, row, count, scratch_.data());
  }

 private:
  const Rows& rows_;
  Scratch<T> scratch_;
};

// Calls f(index, row, first column, columns) for each piece of [begin, end).
template <class F>
void for_each_piece(int64_t begin, int64_t end, int64_t cols, const F& f) {
  const int64_t per_row = loss_pieces(cols);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = index % per_row * kLossPiece;
    f(index, index / per_row, first, cols - first < kLossPiece ? cols - first : kLossPiece);
  }
}

template <class T, class Count>
Vec<acc_t<T>> load_or_one(const T* from, int64_t i, Count n) {
  return from == nullptr ? splat<acc_t<T>>(1) : load(from + i, n);
}

template <PointwiseLoss kKind, class T, class Out>
void forward_pieces(const PointwiseLossParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const PieceReader<T> inputs(p.input), targets(p.target), weights(p.weight), pos_weights(p.pos_weight);
  for_each_piece(begin, end, p.cols, [&](int64_t index, int64_t row, int64_t first, int64_t count) {
    const T *x = inputs.at(row, first, count), *t = targets.at(row, first, count);
    const T *w = weights.at(row, first, count), *v = pos_weights.at(row, first, count);
    Out* out = p.output == nullptr ? nullptr : static_cast<Out*>(p.output) + row * p.cols + first;
    Vec<A> total{};
    for_each_vector<A>(count, [&](int64_t i, auto n) {
      const Vec<A> loss =
          load_or_one(w, i, n) * loss_of<kKind, A>(load(x + i, n), load(t + i, n), load_or_one(v, i, n));
      if (out != nullptr) return store(out + i, loss, n);
      if constexpr (std::is_same_v<decltype(n), Whole>) {
        total += loss;
      } else {
        for (int64_t lane = 0; lane < n; ++lane) total[lane] += loss[lane];
      }
    });
    if (p.sums != nullptr) static_cast<A*>(p.sums)[index] = reduce_add<A>(total);
  });
}

template <PointwiseLoss kKind, class T, class G>
void backward_pieces(const PointwiseLossBackwardParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const PieceReader<T> inputs(p.input), targets(p.target), weights(p.weight), pos_weights(p.pos_weight);
  const PieceReader<G> grads(p.grad_loss);
  const A factor = static_cast<A>(p.factor);
  for_each_piece(begin, end, p.cols, [&](int64_t, int64_t row, int64_t first, int64_t count) {
    const T *x = inputs.at(row, first, count), *t = targets.at(row, first, count);
    const T *w = weights.at(row, first, count), *v = pos_weights.at(row, first, count);
    const G* g = grads.at(row, first, count);
    T* of_input = static_cast<T*>(p.grad_input) + row * p.cols + first;
    T* of_target = static_cast<T*>(p.grad_target) + row * p.cols + first;
    for_each_vector<A>(count, [&](int64_t i, auto n) {
      const Vec<A> scale = factor * load(g + i, n) * load_or_one(w, i, n);
      const Vec<A> xs = load(x + i, n), ts = load(t + i, n), vs = load_or_one(v, i, n);
      if (p.grad_input != nullptr) store(of_input + i, scale * grad_input_of<kKind, A>(xs, ts, vs), n);
      if (p.grad_target != nullptr) store(of_target + i, scale * grad_target_of<kKind, A>(xs, ts, vs), n);
    });
  });
}

// Calls f with the kind as a type, and values of the dtype and of `other`, which is the same or that of its sums.
template <class F>
void visit(PointwiseLoss kind, DType dtype, DType other, const F& f) {
  const auto with_kind = [&](auto named) {
    visit_float(dtype, [&](auto tag) {
      if (other == dtype) return f(named, tag, tag);
      f(named, tag, acc_t<decltype(tag)>{});
    });
  };
  using enum PointwiseLoss;
  switch (kind) {
    case kBinaryCrossEntropy: return with_kind(std::integral_constant<PointwiseLoss, kBinaryCrossEntropy>{});
    case kKlDiv: return with_kind(std::integral_constant<PointwiseLoss, kKlDiv>{});
    default: return with_kind(std::integral_constant<PointwiseLoss, kKlDivLog>{});
  }
}

int64_t piece_grain(int64_t cols) { return row_grain(cols < kLossPiece ? cols : kLossPiece); }

}  // namespace

void pointwise_loss(const PointwiseLossParams& p) {
  visit(p.kind, p.dtype, p.output_dtype, [&](auto kind, auto tag, auto out) {
    parallel_for(0, p.rows * loss_pieces(p.cols), piece_grain(p.cols), [&](int64_t begin, int64_t end) {
      forward_pieces<decltype(kind)::value, decltype(tag), decltype(out)>(p, begin, end);
    });
  });
}

void pointwise_loss_backward(const PointwiseLossBackwardParams& p) {
  visit(p.kind, p.dtype, p.grad_loss_dtype, [&](auto kind, auto tag, auto grad) {
    parallel_for(0, p.rows * loss_pieces(p.cols), piece_grain(p.cols), [&](int64_t begin, int64_t end) {
      backward_pieces<decltype(kind)::value, decltype(tag), decltype(grad)>(p, begin, end);
    });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(pointwise_loss, PointwiseLossParams)
WARPWRIGHT_CPU_LAUNCHER(pointwise_loss_backward, PointwiseLossBackwardParams)
