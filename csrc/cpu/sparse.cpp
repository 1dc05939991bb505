// 2:4 sparse weights on the CPU: pruned, made dense again, the gradient of that, and the product with a few rows, which
// takes the weight row by row through the cache. Rows of the weight go to threads.

#include "kernels/sparse.h"

#include "cpu/parallel.h"
#include "cpu/vec.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// NaN counts as an infinity.
template <class A>
A magnitude(A x) {
  return x != x ? std::numeric_limits<A>::infinity() : (x < 0 ? -x : x);
}

template <class T>
void prune_row(const Prune24Params& p, int64_t row) {
  const T* weight = static_cast<const T*>(p.weight) + row * p.weight_row;
  T* values = static_cast<T*>(p.values) + row * (p.k / 2);
  uint8_t* metadata = p.metadata + row * ((p.k + 7) / 8);
  for (int64_t group = 0; group < p.k / 4; ++group) {
    const T* four = weight + 4 * group * p.weight_col;
    acc_t<T> magnitudes[4];
    for (int64_t i = 0; i < 4; ++i) magnitudes[i] = magnitude(to_acc(four[i * p.weight_col]));
    const int places = largest_two(magnitudes);
    values[2 * group] = four[(places & 3) * p.weight_col];
    values[2 * group + 1] = four[(places >> 2) * p.weight_col];
    const int others = group % 2 == 0 ? 0 : metadata[group / 2];
    metadata[group / 2] = static_cast<uint8_t>(others | places << (group % 2 * 4));
  }
}

// Row `row` of the dense weight, as elements of To: the storage type, or what it is computed in.
template <class T, class To, class Convert>
void dense_row(const Sparse24& weight, int64_t row, int64_t k, To* out, const Convert& convert) {
  const T* values = static_cast<const T*>(weight.values) + row * weight.values_row;
  for (int64_t group = 0; group < k / 4; ++group) {
    const int places = weight.places(row, group);
    To* four = out + 4 * group;
    for (int i = 0; i < 4; ++i) four[i] = To{};
    four[places >> 2] = convert(values[(2 * group + 1) * weight.values_col]);
    four[places & 3] = convert(values[2 * group * weight.values_col]);
  }
}

template <class T>
void kept_row(const DenseFromSparse24BackwardParams& p, int64_t row) {
  const T* grad = static_cast<const T*>(p.grad_output) + row * p.grad_row;
  T* out = static_cast<T*>(p.grad_values) + row * (p.k / 2);
  for (int64_t group = 0; group < p.k / 4; ++group) {
    const int places = p.weight.places(row, group);
    out[2 * group] = grad[(4 * group + (places & 3)) * p.grad_col];
    out[2 * group + 1] = grad[(4 * group + (places >> 2)) * p.grad_col];
  }
}

// Columns [begin, end) of the product, for all rows of the input. Each row of the weight is made dense once.
template <class T>
void product_columns(const LinearSparse24Params& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const GemmParams& gemm = p.gemm;
  Scratch<A> input(gemm.m * gemm.k), weight(gemm.k);
  for (int64_t row = 0; row < gemm.m; ++row) {
    const T* from = static_cast<const T*>(gemm.a) + row * gemm.a_row;
    for (int64_t k = 0; k < gemm.k; ++k) input.data()[row * gemm.k + k] = to_acc(from[k * gemm.a_col]);
  }
  A* sums = static_cast<A*>(gemm.output);
  for (int64_t col = begin; col < end; ++col) {
    dense_row<T>(p.weight, col, gemm.k, weight.data(), [](T x) { return to_acc(x); });
    for (int64_t row = 0; row < gemm.m; ++row) {
      const A* x = input.data() + row * gemm.k;
      sums[row * gemm.n + col] = sum_vectors<A>(
          gemm.k, [&](int64_t i, auto count) { return load(x + i, count) * load(weight.data() + i, count); });
    }
  }
}

// Calls row(tag, index) for each of `rows` rows, whose elements have the storage type of `tag`.
template <class Row>
void for_each_row(DType dtype, int64_t rows, int64_t k, const Row& row) {
  visit_float(dtype, [&](auto tag) {
    parallel_for(0, rows, row_grain(k), [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) row(tag, index);
    });
  });
}

}  // namespace

void prune_24(const Prune24Params& p) {
  for_each_row(p.dtype, p.n, p.k, [&](auto tag, int64_t row) { prune_row<decltype(tag)>(p, row); });
}

void dense_from_sparse24(const DenseFromSparse24Params& p) {
  for_each_row(p.dtype, p.n, p.k, [&](auto tag, int64_t row) {
    using T = decltype(tag);
    dense_row<T>(p.weight, row, p.k, static_cast<T*>(p.dense) + row * p.k, [](T x) { return x; });
  });
}

void dense_from_sparse24_backward(const DenseFromSparse24BackwardParams& p) {
  for_each_row(p.dtype, p.n, p.k, [&](auto tag, int64_t row) { kept_row<decltype(tag)>(p, row); });
}

void linear_sparse24(const LinearSparse24Params& p) {
  visit_float(p.gemm.dtype, [&](auto tag) {
    parallel_for(0, p.gemm.n, row_grain(p.gemm.k),
                 [&](int64_t begin, int64_t end) { product_columns<decltype(tag)>(p, begin, end); });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(prune_24, Prune24Params)
WARPWRIGHT_CPU_LAUNCHER(dense_from_sparse24, DenseFromSparse24Params)
WARPWRIGHT_CPU_LAUNCHER(dense_from_sparse24_backward, DenseFromSparse24BackwardParams)
WARPWRIGHT_CPU_LAUNCHER(linear_sparse24, LinearSparse24Params)
