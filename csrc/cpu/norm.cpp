// Norms on the CPU: one pass to sum a row and one to write it, both from the first-level cache. Rows go to threads;
// weight gradients go through the fixed partial sums of kernels/norm.h.

#include "kernels/norm.h"

#include "cpu/partials.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// sum = input + residual, rounded to T as the unfused addition would round it.
template <class T>
void add_rows(const T* a, const T* b, T* sum, int64_t cols) {
  using A = acc_t<T>;
  for_each_vector<A>(cols, [&](int64_t i, auto n) { store(sum + i, load(a + i, n) + load(b + i, n), n); });
}

template <class T>
acc_t<T> sum_of_squares(const T* x, int64_t cols) {
  using A = acc_t<T>;
  Vec<A> total{};
  for_each_vector<A>(cols, [&](int64_t i, auto n) {
    const Vec<A> v = load(x + i, n);
    total += v * v;
  });
  return reduce_add<A>(total);
}

template <class T>
void rms_norm_rows(const RmsNormParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  Scratch<T> input_row(p.cols), residual_row(p.cols);
  const T* weight = static_cast<const T*>(p.weight);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = row_data(p.input, row, p.cols, input_row.data());
    if (p.residual.data != nullptr) {
      T* sum = static_cast<T*>(p.sum) + row * p.cols;
      add_rows(x, row_data(p.residual, row, p.cols, residual_row.data()), sum, p.cols);
      x = sum;
    }
    const A rstd = A(1) / std::sqrt(sum_of_squares(x, p.cols) / A(p.cols) + A(p.eps));
    static_cast<A*>(p.rstd)[row] = rstd;
    T* out = static_cast<T*>(p.output) + row * p.cols;
    for_each_vector<A>(p.cols, [&](int64_t i, auto n) {
      Vec<A> y = load(x + i, n) * rstd;
      if (weight != nullptr) y *= load(weight + i, n);
      store(out + i, y, n);
    });
  }
}

// With xhat = x * rstd and g = grad_output * weight:
//   grad_input = rstd * (g - xhat * mean(g * xhat)) + grad_sum,   grad_weight = sum over rows of grad_output * xhat.
template <class T>
void rms_norm_backward_rows(const RmsNormBackwardParams& p, int64_t begin, int64_t end, acc_t<T>* partial) {
  using A = acc_t<T>;
  Scratch<T> grad_row(p.cols), x_row(p.cols), extra_row(p.cols);
  const T* weight = static_cast<const T*>(p.weight);
  for (int64_t row = begin; row < end; ++row) {
    const T* grad = row_data(p.grad_output, row, p.cols, grad_row.data());
    const T* x = row_data(p.sum, row, p.cols, x_row.data());
    const A rstd = static_cast<const A*>(p.rstd)[row];
    Vec<A> dot{};
    for_each_vector<A>(p.cols, [&](int64_t i, auto n) {
      const Vec<A> dy = load(grad + i, n), xhat = load(x + i, n) * rstd;
      if (partial != nullptr) store(partial + i, load(partial + i, n) + dy * xhat, n);
      dot += (weight != nullptr ? dy * load(weight + i, n) : dy) * xhat;
    });
    if (p.grad_input == nullptr) continue;
    const A mean = reduce_add<A>(dot) / A(p.cols);
    const T* extra = p.grad_sum.data == nullptr ? nullptr : row_data(p.grad_sum, row, p.cols, extra_row.data());
    T* out = static_cast<T*>(p.grad_input) + row * p.cols;
    for_each_vector<A>(p.cols, [&](int64_t i, auto n) {
      Vec<A> g = load(grad + i, n);
      if (weight != nullptr) g *= load(weight + i, n);
      Vec<A> dx = (g - load(x + i, n) * rstd * mean) * rstd;
      if (extra != nullptr) dx += load(extra + i, n);
      store(out + i, dx, n);
    });
  }
}

}  // namespace

void rms_norm(const RmsNormParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    parallel_for(0, p.rows, row_grain(p.cols), [&](int64_t b, int64_t e) { rms_norm_rows<T>(p, b, e); });
  });
}

void rms_norm_backward(const RmsNormBackwardParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = acc_t<T>;
    const int64_t blocks = norm_partials(p.rows);
    const int64_t grain = row_grain(p.cols * (p.rows / (blocks < 1 ? 1 : blocks)));
    parallel_for(0, blocks, grain, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        A* partial = p.partials == nullptr ? nullptr : static_cast<A*>(p.partials) + block * p.cols;
        if (partial != nullptr) {
          for (int64_t i = 0; i < p.cols; ++i) partial[i] = 0;
        }
        rms_norm_backward_rows<T>(p, p.rows * block / blocks, p.rows * (block + 1) / blocks, partial);
      }
    });
    if (p.grad_weight != nullptr) {
      reduce_partials<T>(static_cast<const A*>(p.partials), blocks, p.cols, static_cast<T*>(p.grad_weight));
    }
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(rms_norm, RmsNormParams)
WARPWRIGHT_CPU_LAUNCHER(rms_norm_backward, RmsNormBackwardParams)
