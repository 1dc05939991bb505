// Norms on the CPU: a row is summed and written while it lies in the first-level cache. Rows go to threads; weight
// gradients go through the fixed partial sums of kernels/norm.h.

#include "kernels/norm.h"

#include "cpu/dropout.h"
#include "cpu/partials.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// A block has at least so many rows, where there are as many: its sums are written, read and added up once more.
constexpr int64_t kBlockRows = 8;

// sum = dropout(input) + residual, rounded to T as the unfused addition would round it; either may be missing. Returns
// the sum of term(sum, count) over the row, so that it need not be read again.
template <class T, class Term>
acc_t<T> add_rows(const T* a, const acc_t<T>* factors, const T* b, T* sum, int64_t cols, const Term& term) {
  using A = acc_t<T>;
  return sum_vectors<A>(cols, [&](int64_t i, auto n) {
    Vec<A> v = load(a + i, n);
    if (factors != nullptr) v *= load(factors + i, n);
    if (b != nullptr) v += load(b + i, n);
    store(sum + i, v, n);
    return term(load(sum + i, n));
  });
}

// Of the differences, in a second pass: the mean of squares less the square of the mean loses every digit when the
// mean is large.
template <class T>
acc_t<T> sum_of_squares(const T* x, int64_t cols, acc_t<T> mean) {
  using A = acc_t<T>;
  return sum_vectors<A>(cols, [&](int64_t i, auto n) {
    const Vec<A> d = load(x + i, n, mean) - mean;  // Lanes past the end hold the mean: they add nothing.
    return d * d;
  });
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
  for (int64_t row = begin; row < end; ++row) {
    const T* x = row_data(p.input, row, p.cols, input_row.data());
    A total = 0;  // Of the elements, or of their squares where there is no mean to take from them.
    if (p.sum != nullptr) {
      T* sum = static_cast<T*>(p.sum) + row * p.cols;
      const A* factors = dropout_factors(p.dropout, row, p.cols, factors_row.data());
      const T* residual = p.residual.data == nullptr ? nullptr : row_data(p.residual, row, p.cols, residual_row.data());
      total = centred ? add_rows(x, factors, residual, sum, p.cols, [](Vec<A> v) { return v; })
                      : add_rows(x, factors, residual, sum, p.cols, [](Vec<A> v) { return v * v; });
      x = sum;
    } else if (centred) {
      total = sum_vectors<A>(p.cols, [&](int64_t i, auto n) { return load(x + i, n); });
    } else {
      total = sum_of_squares(x, p.cols, A(0));
    }
    const A mean = centred ? total / count : A(0);
    const A squares = centred ? sum_of_squares(x, p.cols, mean) : total;
    const A length = std::sqrt(squares);
    const A rstd = A(1) / (p.l2 ? (length < eps ? eps : length) : std::sqrt(squares / count + eps));
    if (centred) static_cast<A*>(p.mean)[row] = mean;
    static_cast<A*>(p.rstd)[row] = p.l2 ? length : rstd;
    T* out = static_cast<T*>(p.output) + row * p.cols;
    for_each_vector<A>(p.cols, [&](int64_t i, auto n) {
      Vec<A> y = (load(x + i, n) - mean) * rstd;
      if (weight != nullptr) y *= load(weight + i, n) + weight_offset;
      if (bias != nullptr) y += load(bias + i, n);
      store(out + i, y, n);
    });
  }
}

// With xhat = (x - mean) * rstd and g = grad_output * (weight_offset + weight):
//   grad_input  = rstd * (g - mean(g) - xhat * mean(g * xhat)) + grad_sum    (without mean(g) for the RMS norm)
//   grad_weight = sum over rows of grad_output * xhat,   grad_bias = sum over rows of grad_output.
template <class T>
void backward_rows(const NormBackwardParams& p, int64_t begin, int64_t end, acc_t<T>* weight_sums,
                   acc_t<T>* bias_sums) {
  using A = acc_t<T>;
  Scratch<T> grad_row(p.cols), x_row(p.cols), extra_row(p.cols);
  Scratch<A> factors_row(p.dropout.seed == nullptr ? 0 : p.cols);
  const T* weight = static_cast<const T*>(p.weight);
  const A eps = A(p.eps), weight_offset = A(p.weight_offset);
  for (int64_t row = begin; row < end; ++row) {
    const T* grad = row_data(p.grad_output, row, p.cols, grad_row.data());
    const T* x = row_data(p.sum, row, p.cols, x_row.data());
    const A mean = p.mean == nullptr ? A(0) : static_cast<const A*>(p.mean)[row];
    const A statistic = static_cast<const A*>(p.rstd)[row];
    const bool shorter = p.l2 && statistic < eps;  // Then the divisor is a constant.
    const A rstd = p.l2 ? A(1) / (shorter ? eps : statistic) : statistic;
    Vec<A> dot{}, total{};
    for_each_vector<A>(p.cols, [&](int64_t i, auto n) {
      const Vec<A> dy = load(grad + i, n), xhat = (load(x + i, n) - mean) * rstd;
      if (weight_sums != nullptr) store(weight_sums + i, load(weight_sums + i, n) + dy * xhat, n);
      if (bias_sums != nullptr) store(bias_sums + i, load(bias_sums + i, n) + dy, n);
      const Vec<A> g = weight != nullptr ? dy * (load(weight + i, n) + weight_offset) : dy;
      dot += g * xhat;
      total += g;
    });
    if (p.grad_input == nullptr && p.grad_residual == nullptr) continue;
    const A whole_dot = reduce_add<A>(dot);
    const A mean_dot = p.l2 ? (shorter ? A(0) : whole_dot) : whole_dot / A(p.cols);
    const A mean_grad = p.mean == nullptr ? A(0) : reduce_add<A>(total) / A(p.cols);
    const T* extra = p.grad_sum.data == nullptr ? nullptr : row_data(p.grad_sum, row, p.cols, extra_row.data());
    const A* factors = dropout_factors(p.dropout, row, p.cols, factors_row.data());
    T* of_input = p.grad_input == nullptr ? nullptr : static_cast<T*>(p.grad_input) + row * p.cols;
    T* of_residual = p.grad_residual == nullptr ? nullptr : static_cast<T*>(p.grad_residual) + row * p.cols;
    for_each_vector<A>(p.cols, [&](int64_t i, auto n) {
      Vec<A> g = load(grad + i, n);
      if (weight != nullptr) g *= load(weight + i, n) + weight_offset;
      const Vec<A> xhat = (load(x + i, n) - mean) * rstd;
      Vec<A> dx = (g - mean_grad - xhat * mean_dot) * rstd;
      if (extra != nullptr) dx += load(extra + i, n);
      if (of_residual != nullptr) store(of_residual + i, dx, n);
      if (of_input != nullptr) store(of_input + i, factors != nullptr ? dx * load(factors + i, n) : dx, n);
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
    const int64_t blocks = norm_partials((p.rows + kBlockRows - 1) / kBlockRows);
    const int64_t grain = row_grain(p.cols * (p.rows / (blocks < 1 ? 1 : blocks)));
    parallel_for(0, blocks, grain, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        A* weight_sums = partial_row<A>(p.weight_partials, block, p.cols);
        A* bias_sums = partial_row<A>(p.bias_partials, block, p.cols);
        backward_rows<T>(p, p.rows * block / blocks, p.rows * (block + 1) / blocks, weight_sums, bias_sums);
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
