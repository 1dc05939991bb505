// Norms on the CPU: a row is summed and written while it lies in the first-level cache. Rows go to threads; weight
// gradients go through the fixed partial sums of kernels/norm.h.

#include "kernels/norm.h"

#include "cpu/dropout_mask.h"
#include "cpu/partials.h"
#include "cpu/stream.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// x as a load finds what a store of it left behind.
template <class T>
Vec<acc_t<T>> rounded(Vec<acc_t<T>> x) {
  if constexpr (sizeof(T) == sizeof(acc_t<T>)) return x;
  alignas(kVectorBytes) T lanes[kLanes<acc_t<T>>];
  store(lanes, x);
  return load(lanes);
}

// What is normalised: a row as it lies, or dropout(a) + b, rounded to T as the unfused addition would round it and
// written down when it is first read.
template <class T>
struct RowSum {
  using A = acc_t<T>;
  const T* a;
  const A* factors;  // Null without dropout.
  const T* b;        // Null without a residual.
  T* sum;            // Null where the row is `a`.

  const T* data() const { return sum != nullptr ? sum : a; }
  // Of a sum, elements that have not been written down yet.
  template <class Count>
  Vec<A> first(int64_t i, Count n) const {
    Vec<A> v = load(a + i, n);
    if (factors != nullptr) v *= load(factors + i, n);
    if (b != nullptr) v += load(b + i, n);
    store(sum + i, v, n);
    return rounded<T>(v);
  }
};

template <class A>
struct Moments {
  A mean, squares;  // squares: the sum of the squared differences to the mean.
};

// So many elements stay in the first-level cache between the two looks at them.
constexpr int64_t kMomentsChunk = 4096;

// The mean of squares less the square of the mean loses every digit when the mean is large. So each chunk is looked at
// twice, and what two chunks say is put together as Chan, Golub and LeVeque do (1979).
template <class T>
Moments<acc_t<T>> moments(const RowSum<T>& row, int64_t cols) {
  using A = acc_t<T>;
  Moments<A> all{0, 0};
  for (int64_t first = 0; first < cols; first += kMomentsChunk) {
    const int64_t count = cols - first < kMomentsChunk ? cols - first : kMomentsChunk;
    const T* x = row.data() + first;
    const A sum = row.sum == nullptr
                      ? sum_vectors<A>(count, [&](int64_t i, auto n) { return load(x + i, n); })
                      : sum_vectors<A>(count, [&](int64_t i, auto n) { return row.first(first + i, n); });
    const A mean = sum / A(count);
    const A squares = sum_vectors<A>(count, [&](int64_t i, auto n) {
      const Vec<A> d = load(x + i, n, mean) - mean;  // Lanes past the end hold the mean: they add nothing.
      return d * d;
    });
    const A delta = mean - all.mean, share = A(count) / A(first + count);
    all.squares += squares + delta * delta * A(first) * share;
    all.mean += delta * share;
  }
  return all;
}

template <class T>
Moments<acc_t<T>> squares_alone(const RowSum<T>& row, int64_t cols) {
  using A = acc_t<T>;
  const auto square = [](Vec<A> v) { return v * v; };
  if (row.sum == nullptr)
    return {0, sum_vectors<A>(cols, [&](int64_t i, auto n) { return square(load(row.a + i, n)); })};
  return {0, sum_vectors<A>(cols, [&](int64_t i, auto n) { return square(row.first(i, n)); })};
}

template <class T>
void forward_rows(const NormParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  Scratch<T> input_row(p.cols), residual_row(p.cols);
  Scratch<A> factors_row(p.dropout.seed == nullptr ? 0 : p.cols);
  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  const A eps = A(p.eps), count = A(p.cols), weight_offset = A(p.weight_offset);
  const bool centred = p.mean != nullptr;
  const bool streamed = p.rows * p.cols * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
                        streams(static_cast<const T*>(p.output), p.cols);
  for (int64_t row = begin; row < end; ++row) {
    RowSum<T> h{row_data(p.input, row, p.cols, input_row.data()), nullptr, nullptr, nullptr};
    if (p.sum != nullptr) {
      h.sum = static_cast<T*>(p.sum) + row * p.cols;
      h.factors = dropout_factors(p.dropout, row, p.cols, factors_row.data());
      if (p.residual.data != nullptr) h.b = row_data(p.residual, row, p.cols, residual_row.data());
    }
    const Moments<A> found = centred ? moments(h, p.cols) : squares_alone(h, p.cols);
    const A mean = found.mean, squares = found.squares;
    const T* x = h.data();
    const A length = std::sqrt(squares);
    const A rstd = A(1) / (p.l2 ? (length < eps ? eps : length) : std::sqrt(squares / count + eps));
    if (centred) static_cast<A*>(p.mean)[row] = mean;
    static_cast<A*>(p.rstd)[row] = p.l2 ? length : rstd;
    T* out = static_cast<T*>(p.output) + row * p.cols;
    const auto value = [&](int64_t i, auto n) {
      Vec<A> y = (load(x + i, n) - mean) * rstd;
      if (weight != nullptr) y *= load(weight + i, n) + weight_offset;
      if (bias != nullptr) y += load(bias + i, n);
      return y;
    };
    if (streamed) {
      for (int64_t i = 0; i < p.cols; i += kLanes<A>) stream(out + i, value(i, Whole{}));
    } else {
      write_vectors<A>(out, p.cols, value);
    }
  }
  if (streamed) finish_streams();
}

// With xhat = (x - mean) * rstd and g = grad_output * (weight_offset + weight):
//   grad_input  = rstd * (g - mean(g) - xhat * mean(g * xhat)) + grad_sum    (without mean(g) for the RMS norm)
//   grad_weight = sum over rows of grad_output * xhat,   grad_bias = sum over rows of grad_output.
// What the gradient needs to know of a row.
template <class T>
struct GradRow {
  using A = acc_t<T>;
  const T *grad, *x;
  A mean, rstd;
  bool shorter = false;  // Than eps, by which it was divided then.

  GradRow(const NormBackwardParams& p, int64_t row, T* grad_row, T* x_row)
      : grad(row_data(p.grad_output, row, p.cols, grad_row)), x(row_data(p.sum, row, p.cols, x_row)) {
    const A statistic = static_cast<const A*>(p.rstd)[row], eps = A(p.eps);
    mean = p.mean == nullptr ? A(0) : static_cast<const A*>(p.mean)[row];
    shorter = p.l2 && statistic < eps;
    rstd = p.l2 ? A(1) / (shorter ? eps : statistic) : statistic;
  }
  template <class Count>
  Vec<A> xhat(int64_t i, Count n) const {
    return (load(x + i, n) - mean) * rstd;
  }
};

// The gradients of inputs [begin, end).
template <class T>
void input_grads(const NormBackwardParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  Scratch<T> grad_row(p.cols), x_row(p.cols), extra_row(p.cols);
  Scratch<A> factors_row(p.dropout.seed == nullptr ? 0 : p.cols);
  const T* weight = static_cast<const T*>(p.weight);
  const A weight_offset = A(p.weight_offset);
  for (int64_t row = begin; row < end; ++row) {
    const GradRow<T> of(p, row, grad_row.data(), x_row.data());
    const auto g = [&](int64_t i, auto n) {
      const Vec<A> dy = load(of.grad + i, n);
      return weight != nullptr ? dy * (load(weight + i, n) + weight_offset) : dy;
    };
    Vec<A> dot{}, total{};
    for_each_vector<A>(p.cols, [&](int64_t i, auto n) {
      dot += g(i, n) * of.xhat(i, n);
      total += g(i, n);
    });
    const A whole_dot = reduce_add<A>(dot);
    const A mean_dot = p.l2 ? (of.shorter ? A(0) : whole_dot) : whole_dot / A(p.cols);
    const A mean_grad = p.mean == nullptr ? A(0) : reduce_add<A>(total) / A(p.cols);
    const T* extra = p.grad_sum.data == nullptr ? nullptr : row_data(p.grad_sum, row, p.cols, extra_row.data());
    const A* factors = dropout_factors(p.dropout, row, p.cols, factors_row.data());
    T* of_input = p.grad_input == nullptr ? nullptr : static_cast<T*>(p.grad_input) + row * p.cols;
    T* of_residual = p.grad_residual == nullptr ? nullptr : static_cast<T*>(p.grad_residual) + row * p.cols;
    for_each_vector<A>(p.cols, [&](int64_t i, auto n) {
      Vec<A> dx = (g(i, n) - mean_grad - of.xhat(i, n) * mean_dot) * of.rstd;
      if (extra != nullptr) dx += load(extra + i, n);
      if (of_residual != nullptr) store(of_residual + i, dx, n);
      if (of_input != nullptr) store(of_input + i, factors != nullptr ? dx * load(factors + i, n) : dx, n);
    });
  }
}

// Rows that are added to the sums while these are in registers.
constexpr int64_t kSumRows = 8;

// The sums of grad * xhat and of grad over rows [begin, end), added to what is there.
template <class T>
void add_weight_grads(const NormBackwardParams& p, int64_t begin, int64_t end, acc_t<T>* weight_sums,
                      acc_t<T>* bias_sums) {
  using A = acc_t<T>;
  Scratch<T> grad_rows(kSumRows * p.cols), x_rows(kSumRows * p.cols);
  for (int64_t first = begin; first < end; first += kSumRows) {
    const int64_t count = end - first < kSumRows ? end - first : kSumRows;
    Scratch<GradRow<T>> rows(count);
    for (int64_t k = 0; k < count; ++k) {
      rows.data()[k] = GradRow<T>(p, first + k, grad_rows.data() + k * p.cols, x_rows.data() + k * p.cols);
    }
    for_each_vector<A>(p.cols, [&](int64_t i, auto n) {
      Vec<A> of_weight{}, of_bias{};
      for (int64_t k = 0; k < count; ++k) {
        const GradRow<T>& row = rows.data()[k];
        const Vec<A> dy = load(row.grad + i, n);
        of_weight += dy * row.xhat(i, n);
        of_bias += dy;
      }
      if (weight_sums != nullptr) store(weight_sums + i, load(weight_sums + i, n) + of_weight, n);
      if (bias_sums != nullptr) store(bias_sums + i, load(bias_sums + i, n) + of_bias, n);
    });
  }
}

// Row `block` of a partials buffer, zeroed; null without one.
template <class A>
A* partial_row(void* partials, int64_t block, int64_t cols) {
  if (partials == nullptr) return nullptr;
  A* row = static_cast<A*>(partials) + block * cols;
  for (int64_t i = 0; i < cols; ++i) row[i] = 0;
  return row;
}

}  // namespace

void norm_forward(const NormParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    parallel_for(0, p.rows, row_grain(p.cols), [&](int64_t b, int64_t e) { forward_rows<T>(p, b, e); });
  });
}

void norm_backward(const NormBackwardParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = acc_t<T>;
    const bool inputs = p.grad_input != nullptr || p.grad_residual != nullptr;
    const bool weights = p.grad_weight != nullptr || p.grad_bias != nullptr;
    const int64_t blocks = norm_partials(p.rows, kNormBlockRows);
    const int64_t grain = row_grain(p.cols * (p.rows / (blocks < 1 ? 1 : blocks)));
    parallel_for(0, blocks, grain, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t begin = p.rows * block / blocks, end = p.rows * (block + 1) / blocks;
        if (inputs) input_grads<T>(p, begin, end);
        if (!weights) continue;
        A* weight_sums = partial_row<A>(p.weight_partials, block, p.cols);
        A* bias_sums = partial_row<A>(p.bias_partials, block, p.cols);
        add_weight_grads<T>(p, begin, end, weight_sums, bias_sums);
      }
    });
    if (p.grad_weight != nullptr) {
      reduce_partials<T>(static_cast<const A*>(p.weight_partials), blocks, p.cols, static_cast<T*>(p.grad_weight));
    }
    if (p.grad_bias != nullptr) {
      reduce_partials<T>(static_cast<const A*>(p.bias_partials), blocks, p.cols, static_cast<T*>(p.grad_bias));
    }
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(norm_forward, NormParams)
WARPWRIGHT_CPU_LAUNCHER(norm_backward, NormBackwardParams)
