// The CPU's matrix product: oneDNN through torch, with the epilogue fused where oneDNN has it.
//
// The fused call is the one that torch's own compiler emits. It is looked up weakly: a torch without it still loads
// this library, and the product then takes aten's addmm and one pass of ours over the result. Both are C functions:
// the dispatcher's boxed way in costs a small product as much again.

#include "bindings/gemm.h"
#include "bindings/onednn/post_op.h"
#include "kernels/epilogue.h"

extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(AtenTensorHandle input, AtenTensorHandle weight,
                                                                      AtenTensorHandle* bias, const char* attr,
                                                                      const double** scalars, int64_t scalars_len,
                                                                      const char** algorithm, AtenTensorHandle* result);
__attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise_binary(AtenTensorHandle input,
                                                                             AtenTensorHandle other,
                                                                             AtenTensorHandle weight,
                                                                             AtenTensorHandle* bias, const char* attr,
                                                                             AtenTensorHandle* result);
AOTITorchError aoti_torch_cpu_addmm_out(AtenTensorHandle out, AtenTensorHandle bias, AtenTensorHandle a,
                                        AtenTensorHandle b, double beta, double alpha);
AOTITorchError aoti_torch_cpu_mm_out(AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b);
AOTITorchError aoti_torch_cpu_bmm_out(AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b);
}

namespace warpwright {
namespace {

// Multiplications under which aten's shorter way in beats oneDNN's faster product; a fused epilogue saves a pass, and
// pays earlier.
constexpr int64_t kPlainWork = int64_t{1} << 22, kFusedWork = int64_t{1} << 18;

// oneDNN adds up a float32 product in one chain, whose error past so many terms is more than twice that of aten's
// blocks. What is rounded to 16 bits afterwards does not notice.
constexpr int64_t kOneDnnLongestSum = 768;

AtenTensorHandle handle_of(const OptionalTensor& tensor) { return tensor.has_value() ? tensor->get() : nullptr; }

Tensor fused_unary(const Tensor& a, const Tensor& b, const OptionalTensor& bias, Activation activation) {
  AtenTensorHandle bias_handle = handle_of(bias), result = nullptr;
  onednn::PostOp post = onednn::post_op(activation);
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__linear_pointwise(
      a.get(), b.get(), bias_handle ? &bias_handle : nullptr, post.name, post.parameter ? &post.parameter : nullptr,
      post.parameter ? 1 : 0, post.algorithm ? &post.algorithm : nullptr, &result));
  return Tensor(result);
}

Tensor fused_add(const Tensor& a, const Tensor& other, const Tensor& b, const OptionalTensor& bias) {
  AtenTensorHandle bias_handle = handle_of(bias), result = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__linear_pointwise_binary(
      a.get(), other.get(), b.get(), bias_handle ? &bias_handle : nullptr, "add", &result));
  return Tensor(result);
}

// Whether rows (or columns) lie one after the other without gaps.
bool by_rows(const Tensor& m) { return m.stride(1) == 1 && m.stride(0) == m.size(1); }
bool by_columns(const Tensor& m) { return m.stride(0) == 1 && m.stride(1) == m.size(0); }

// With gaps in its weight oneDNN is a thousand times slower. Of an input in any other order torch makes a copy, which
// takes longer than oneDNN saves; aten reads both where they lie.
bool onednn_takes(const Tensor& a, const Tensor& b, int64_t least_work) {
  const ScalarType dtype = a.scalar_type();
  const bool exact = dtype == ScalarType::BFloat16 || (dtype == ScalarType::Float && a.size(1) <= kOneDnnLongestSum);
  const bool worth = a.size(0) * a.size(1) * b.size(0) >= least_work;
  const bool in_order = by_rows(a) && (by_rows(b) || by_columns(b));
  return exact && worth && in_order && &aoti_torch_cpu__linear_pointwise != nullptr;
}

// On processors with AMX torch's bfloat16 product (oneDNN's, seen in torch 2.13) reads rows in pieces of up to 64
// bytes, and multiplies what lies behind the last element by 0: NaNs of a gap between rows would get into the sum. Rows
// with gaps are copied to where zeros follow them. Of rows without gaps it reads the next row, as torch's own product
// does.
Tensor without_gaps(const Tensor& a) {
  constexpr int64_t kPiece = 32;
  const int64_t m = a.size(0), k = a.size(1);
  if (a.scalar_type() != ScalarType::BFloat16 || k % kPiece == 0 || a.stride(1) != 1 || a.stride(0) == k) return a;
  const int64_t pitch = (k + kPiece - 1) / kPiece * kPiece;
  Tensor wide = empty({m, pitch}, a.scalar_type(), a);
  torch::stable::zero_(wide);
  Tensor rows = seen_as(wide, {m, k}, {pitch, 1});
  torch::stable::copy_(rows, a);
  return rows;
}

// One matrix: a @ b.T + bias.
Tensor matrix_product(const Tensor& a, const Tensor& b, const OptionalTensor& bias) {
  if (onednn_takes(a, b, kPlainWork)) return fused_unary(a, b, bias, Activation::kNone);
  Tensor result = empty({a.size(0), b.size(0)}, a.scalar_type(), a);
  const Tensor rows = without_gaps(a);
  const Tensor b_t = seen_as(b, {b.size(1), b.size(0)}, {b.stride(1), b.stride(0)});
  if (bias.has_value()) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(result.get(), bias->get(), rows.get(), b_t.get(), /*beta=*/1.0, /*alpha=*/1.0));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(result.get(), rows.get(), b_t.get()));
  }
  return result;
}

// Many: aten's batched product, once for each value of the outer batch dimensions that share no stride with the inner.
Tensor batched_product(const Tensor& a, const Tensor& b) {
  const BatchView view = batch_view(a, b, std::nullopt);
  const int64_t lead = a.dim() - 2, m = a.size(lead), n = b.size(lead), k = a.size(lead + 1);
  std::vector<int64_t> sizes = sizes_of(a);
  sizes.back() = n;
  Tensor result = empty(sizes, a.scalar_type(), a);
  const int64_t inner = view.size[kMaxBatchDims - 1];
  for (int64_t i = 0; i < view.size[0]; ++i) {
    for (int64_t j = 0; j < view.size[1]; ++j) {
      const Tensor some_a =
          seen_as(view.a, {inner, m, k}, {view.a_stride[2], view.a.stride(lead), view.a.stride(lead + 1)},
                  i * view.a_stride[0] + j * view.a_stride[1]);
      const Tensor some_b =
          seen_as(view.b, {inner, k, n}, {view.b_stride[2], view.b.stride(lead + 1), view.b.stride(lead)},
                  i * view.b_stride[0] + j * view.b_stride[1]);
      Tensor some = seen_as(result, {inner, m, n}, {m * n, n, 1}, (i * view.size[1] + j) * inner * m * n);
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_bmm_out(some.get(), some_a.get(), some_b.get()));
    }
  }
  return result;
}

bool is_empty(const Tensor& a, const Tensor& b) { return a.numel() == 0 || b.numel() == 0; }

// a @ b.T + bias, for one matrix; without the bias for more.
Tensor product(const Tensor& a, const Tensor& b, const OptionalTensor& bias) {
  if (is_empty(a, b)) {
    std::vector<int64_t> sizes = sizes_of(a);
    sizes.back() = b.size(b.dim() - 2);
    Tensor zeros = empty(sizes, a.scalar_type(), a);
    torch::stable::zero_(zeros);
    return zeros;
  }
  return a.dim() == 2 ? matrix_product(a, b, bias) : batched_product(a, b);
}

// The same by a kernel that adds up every row alike, unrounded.
Tensor fixed_product(const Tensor& a, const Tensor& b) {
  std::vector<int64_t> sizes = sizes_of(a);
  sizes.back() = b.size(b.dim() - 2);
  Tensor result = empty(sizes, acc_dtype(a.scalar_type()), a);
  const BatchView view = batch_view(a, b, std::nullopt);
  GemmParams params = product_params(view);
  params.output = result.mutable_data_ptr();
  cpu::gemm_fixed(params, nullptr);
  return result;
}

}  // namespace

void product_into(const Tensor& to, const Tensor& a, const Tensor& b) {
  const Tensor rows = without_gaps(a);
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(to.get(), rows.get(), b.get()));
}

ProductOutput finish_product(const Tensor& product, const Epilogue& epilogue, ScalarType dtype, bool bias_is_in) {
  const ScalarType output_dtype = epilogue.output_dtype(dtype);
  const bool keep = epilogue.keeps_preact(dtype);
  const OptionalTensor bias = contiguous(epilogue.bias), addend = contiguous(epilogue.residual);
  const bool same = product.scalar_type() == output_dtype;
  const std::vector<int64_t> sizes = sizes_of(product);
  ProductOutput result{same ? product : empty(sizes, output_dtype, product),
                       keep ? empty(sizes, dtype, product) : nothing(dtype, product)};
  EpilogueParams params{};
  params.product = product.const_data_ptr();
  params.bias = bias_is_in ? nullptr : data_or_null(bias);
  params.residual = data_or_null(addend);
  params.output = result.output.mutable_data_ptr();
  params.preact = keep ? result.preact.mutable_data_ptr() : nullptr;
  params.channels = sizes.back();
  params.outer = params.channels == 0 ? 0 : product.numel() / params.channels;
  params.inner = 1;
  params.alpha = epilogue.alpha;
  params.beta = epilogue.beta;
  params.output_scale = epilogue.output_scale;
  params.activation = epilogue.activation;
  params.product_dtype = to_dtype(product.scalar_type());
  params.dtype = to_dtype(dtype);
  params.output_dtype = to_dtype(output_dtype);
  cpu::epilogue_forward(params, nullptr);
  return result;
}

ProductOutput gemm(const Tensor& a, const Tensor& b, const Epilogue& epilogue, Arithmetic arithmetic) {
  const ScalarType dtype = a.scalar_type(), output_dtype = epilogue.output_dtype(dtype);
  const bool keep = epilogue.keeps_preact(dtype), plain = epilogue.plain(dtype);
  const OptionalTensor bias = contiguous(epilogue.bias);  // oneDNN reads a strided bias as if it were not.
  const bool fused = a.dim() == 2 && !arithmetic.batch_invariant && !keep && epilogue.alpha == 1 &&
                     epilogue.beta == 1 && epilogue.output_scale == 1 && output_dtype == dtype;
  if (fused && onednn_takes(a, b, plain ? kPlainWork : kFusedWork)) {
    if (!epilogue.residual.has_value()) return {fused_unary(a, b, bias, epilogue.activation), nothing(dtype, a)};
    if (epilogue.activation == Activation::kNone) {
      return {fused_add(a, torch::stable::contiguous(*epilogue.residual), b, bias), nothing(dtype, a)};
    }
  }
  // Unrounded, in float32: for float16, which few processors multiply, so that float32 is faster and closer, and for
  // an output of another dtype.
  const bool wide = dtype == ScalarType::Half || output_dtype != dtype;
  const bool bias_in_product =
      a.dim() == 2 && !arithmetic.batch_invariant && !is_empty(a, b) && !wide && epilogue.alpha == 1;
  const auto operand = [&](const Tensor& t) { return wide ? torch::stable::to(t, ScalarType::Float) : t; };
  const Tensor rough = arithmetic.batch_invariant
                           ? fixed_product(a, b)
                           : product(operand(a), operand(b), bias_in_product ? bias : std::nullopt);
  if (plain && rough.scalar_type() == dtype && (bias_in_product || !bias.has_value())) {
    return {rough, nothing(dtype, a)};
  }
  return finish_product(rough, epilogue, dtype, bias_in_product);
}

}  // namespace warpwright
