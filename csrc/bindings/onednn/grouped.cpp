// The CPU's grouped products: one product after the other, each on all threads, as bindings/onednn/matmul.cpp takes it.

#include "bindings/grouped.h"

namespace warpwright {
namespace {

// Matrix (or row) `index` of a tensor's first dimension.
Tensor one_of(const Tensor& tensor, int64_t index) {
  const std::vector<int64_t> strides(tensor.strides().begin(), tensor.strides().end()), sizes = sizes_of(tensor);
  return seen_as(tensor, {sizes.begin() + 1, sizes.end()}, {strides.begin() + 1, strides.end()}, index * strides[0]);
}

Tensor some_rows(const Tensor& matrix, int64_t first, int64_t count) {
  return seen_as(matrix, {count, matrix.size(1)}, {matrix.stride(0), matrix.stride(1)}, first * matrix.stride(0));
}

// Calls f(group, first row, rows) for every group; returns where the last one ends.
template <class F>
int64_t each_group(const Tensor& offsets, const F& f) {
  const auto* ends = static_cast<const int32_t*>(offsets.const_data_ptr());
  int64_t first = 0;
  for (int64_t group = 0; group < offsets.size(0); ++group) {
    f(group, first, ends[group] - first);
    first = ends[group];
  }
  return first;
}

void copy(Tensor to, const Tensor& from) { torch::stable::copy_(to, from); }
void clear(Tensor tensor) { torch::stable::zero_(tensor); }

}  // namespace

ProductOutput grouped_product(const Tensor& a, const Tensor& b, const Tensor& offsets, const OptionalTensor& bias,
                              Activation activation, bool keep, bool batch_invariant) {
  const ScalarType dtype = a.scalar_type();
  const std::vector<int64_t> sizes{a.size(0), b.size(1)};
  const ProductOutput result{empty(sizes, dtype, a), keep ? empty(sizes, dtype, a) : nothing(dtype, a)};
  const int64_t end = each_group(offsets, [&](int64_t group, int64_t first, int64_t rows) {
    if (rows == 0) return;
    Epilogue epilogue;
    if (bias.has_value()) epilogue.bias = one_of(*bias, group);
    epilogue.activation = activation;
    epilogue.save_preact = keep;
    const ProductOutput part =
        gemm(some_rows(a, first, rows), one_of(b, group), epilogue, {Precision::kIeee, batch_invariant});
    copy(some_rows(result.output, first, rows), part.output);
    if (keep) copy(some_rows(result.preact, first, rows), part.preact);
  });
  clear(some_rows(result.output, end, a.size(0) - end));
  if (keep) clear(some_rows(result.preact, end, a.size(0) - end));
  return result;
}

Tensor grouped_weight_grad(const Tensor& a, const Tensor& b, const Tensor& offsets) {
  const Tensor result = empty({offsets.size(0), a.size(1), b.size(1)}, a.scalar_type(), a);
  each_group(offsets, [&](int64_t group, int64_t first, int64_t rows) {
    const Tensor to = one_of(result, group);
    const Tensor a_t = swapped(some_rows(a, first, rows)), others = some_rows(b, first, rows);
    if (rows == 0 || to.numel() == 0) return clear(to);
    if (a.scalar_type() != ScalarType::Half) return product_into(to, a_t, others);
    copy(to, gemm(a_t, swapped(others), {}, {}).output);  // Multiplied in float32, rounded once.
  });
  return result;
}

Tensor grouped_bias_grad(const Tensor& grad, const Tensor& offsets) {
  const Tensor result = empty({offsets.size(0), grad.size(1)}, grad.scalar_type(), grad);
  each_group(offsets, [&](int64_t group, int64_t first, int64_t rows) {
    const EpilogueGrads sums =
        epilogue_grads(some_rows(grad, first, rows), std::nullopt, Activation::kNone, grad.size(1),
                       /*channels_in_rows=*/false, /*need_preact=*/false, /*need_bias=*/true);
    copy(one_of(result, group), sums.grad_bias);
  });
  return result;
}

}  // namespace warpwright
