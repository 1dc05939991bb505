// Bias, residual and activation after a product, and their backward, each in one pass over memory.

#include "kernels/epilogue.h"

#include <algorithm>
#include <type_traits>

#include "cpu/activation.h"
#include "cpu/float8.h"
#include "cpu/partials.h"

WARPWRIGHT_ISA_BEGIN

namespace {

constexpr int64_t kSummedColumns = 512;

// `count` elements from `offset`, whose bias is one row of channels (channels last) or one value (channels first).
template <class P, class T, class O>
void epilogue_span(const EpilogueParams& p, int64_t offset, int64_t count, const T* bias_row, acc_t<T> bias_value) {
  using A = acc_t<T>;
  const A alpha = static_cast<A>(p.alpha), beta = static_cast<A>(p.beta), scale = static_cast<A>(p.output_scale);
  const bool before = needs_preact(p.activation);
  const P* product = static_cast<const P*>(p.product) + offset;
  const T* residual = p.residual == nullptr ? nullptr : static_cast<const T*>(p.residual) + offset;
  O* output = static_cast<O*>(p.output) + offset;
  T* preact = p.preact == nullptr ? nullptr : static_cast<T*>(p.preact) + offset;
  for_each_vector<A>(count, [&](int64_t i, auto n) {
    Vec<A> x = alpha * load(product + i, n) + bias_value;
    if (bias_row != nullptr) x += load(bias_row + i, n);
    if (residual != nullptr) x += beta * load(residual + i, n);
    const Vec<A> y = activate<A>(p.activation, x);
    if (preact != nullptr) store(preact + i, before ? x : y, n);
    store(output + i, scale * y, n);
  });
}

template <class P, class T, class O>
void epilogue_all(const EpilogueParams& p) {
  const T* bias = static_cast<const T*>(p.bias);
  const bool channels_last = p.inner == 1;
  const int64_t rows = channels_last ? p.outer : p.outer * p.channels;
  const int64_t cols = channels_last ? p.channels : p.inner;
  parallel_for(0, rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const bool one = bias != nullptr && !channels_last;
      epilogue_span<P, T, O>(p, row * cols, cols, channels_last ? bias : nullptr,
                             one ? to_acc(bias[row % p.channels]) : 0);
    }
  });
}

template <class T>
void backward_row(const EpilogueBackwardParams& p, int64_t row, T* grad_row, T* saved_row, acc_t<T>* column_sums,
                  double* row_sum) {
  using A = acc_t<T>;
  const T* grad = row_data(p.grad_output, row, p.cols, grad_row);
  const T* saved = p.saved.data == nullptr ? nullptr : row_data(p.saved, row, p.cols, saved_row);
  const A scale = static_cast<A>(p.scale);
  T* out = p.grad_preact == nullptr ? nullptr : static_cast<T*>(p.grad_preact) + row * p.cols;
  // Part by part: one sum along a long row rounds more than the sum of shorter ones.
  for (int64_t first = 0; first < p.cols; first += kSummedColumns) {
    Vec<A> part{};
    for_each_vector<A>(std::min(kSummedColumns, p.cols - first), [&](int64_t offset, auto n) {
      const int64_t i = first + offset;
      Vec<A> g = load(grad + i, n) * scale;
      if (saved != nullptr) g *= activation_grad<A>(p.activation, load(saved + i, n));
      if (out != nullptr) store(out + i, g, n);
      if (column_sums != nullptr) store(column_sums + i, load(column_sums + i, n) + g, n);
      part += g;
    });
    *row_sum += reduce_add<A>(part);
  }
}

// Blocks of rows; with the channels in the columns, block b sums its rows into row b of the partials.
template <class T>
void backward_blocks(const EpilogueBackwardParams& p) {
  using A = acc_t<T>;
  const int64_t blocks = p.channels_in_rows ? p.rows : epilogue_partials(p.rows, p.channels, false);
  const int64_t rows_a_block = blocks == 0 ? 1 : p.rows / blocks;
  parallel_for(0, blocks, row_grain(p.cols * rows_a_block), [&](int64_t first, int64_t last) {
    Scratch<T> grad_row(p.cols), saved_row(p.cols);
    for (int64_t block = first; block < last; ++block) {
      A* sums = p.partials == nullptr || p.channels_in_rows ? nullptr : static_cast<A*>(p.partials) + block * p.cols;
      for (int64_t i = 0; sums != nullptr && i < p.cols; ++i) sums[i] = 0;
      double row_sum = 0;
      for (int64_t row = p.rows * block / blocks; row < p.rows * (block + 1) / blocks; ++row) {
        backward_row<T>(p, row, grad_row.data(), saved_row.data(), sums, &row_sum);
      }
      if (p.partials != nullptr && p.channels_in_rows) static_cast<A*>(p.partials)[block] = static_cast<A>(row_sum);
    }
  });
}

// Calls f with a value of the storage type of an output, of what is computed in float32.
template <class F>
void visit_output(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat8E4M3: return f(Float8<E4M3>{});
    case DType::kFloat8E5M2: return f(Float8<E5M2>{});
    case DType::kFloat32: return f(float{});
    case DType::kFloat16: return f(Half{});
    default: return f(BFloat16{});
  }
}

}  // namespace

void epilogue_forward(const EpilogueParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (p.product_dtype == p.dtype && p.output_dtype == p.dtype) return epilogue_all<T, T, T>(p);
    if constexpr (!std::is_same_v<T, double>)
      return visit_output(p.output_dtype, [&](auto out) { epilogue_all<float, T, decltype(out)>(p); });
    std::abort();  // The bindings pass products of another dtype in float32 only.
  });
}

void epilogue_backward(const EpilogueBackwardParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = acc_t<T>;
    backward_blocks<T>(p);
    if (p.grad_bias != nullptr) {
      const int64_t count = epilogue_partials(p.rows, p.channels, p.channels_in_rows);
      reduce_partials<T>(static_cast<const A*>(p.partials), count, p.channels, static_cast<T*>(p.grad_bias));
    }
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(epilogue_forward, EpilogueParams)
WARPWRIGHT_CPU_LAUNCHER(epilogue_backward, EpilogueBackwardParams)
