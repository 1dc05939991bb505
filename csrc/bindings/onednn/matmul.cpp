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
  auto [name, algorithm] = onednn::post_op(activation);
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__linear_pointwise(a.get(), b.get(), bias_handle ? &bias_handle : nullptr,
                                                                 name, nullptr, 0, algorithm ? &algorithm : nullptr,
                                                                 &result));
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

// A matrix seen as its transpose.
Tensor transposed(const Tensor& matrix) {
  const int64_t sizes[2] = {matrix.size(1), matrix.size(0)}, strides[2] = {matrix.stride(1), matrix.stride(0)};
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(matrix.get(), 2, sizes, strides, /*offset_increment=*/0, &handle));
  return Tensor(handle);
}

// a @ b.T + bias, unrounded (float32) for float16: few processors multiply it, and float32 is faster and closer.
Tensor product(const Tensor& a, const Tensor& b, const OptionalTensor& bias) {
  if (a.size(1) == 0 || a.size(0) == 0 || b.size(0) == 0) {
    Tensor zeros = empty({a.size(0), b.size(0)}, a.scalar_type(), a);
    torch::stable::zero_(zeros);
    return zeros;
  }
  if (a.scalar_type() == ScalarType::Half) {
    return product(torch::stable::to(a, ScalarType::Float), torch::stable::to(b, ScalarType::Float), std::nullopt);
  }
  if (onednn_takes(a, b, kPlainWork)) return fused_unary(a, b, bias, Activation::kNone);
  Tensor result = empty({a.size(0), b.size(0)}, a.scalar_type(), a);
  const Tensor b_t = transposed(b);
  if (bias.has_value()) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(result.get(), bias->get(), a.get(), b_t.get(), /*beta=*/1.0, /*alpha=*/1.0));
  } else {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(result.get(), a.get(), b_t.get()));
  }
  return result;
}

}  // namespace

LinearOutput gemm(const Tensor& a, const Tensor& b, const OptionalTensor& bias, const OptionalTensor& residual,
                  Activation activation, bool save_preact) {
  const ScalarType dtype = a.scalar_type();
  const bool keep = save_preact && needs_preact(activation);
  const bool plain = activation == Activation::kNone && !residual.has_value();
  const OptionalTensor bias_row = contiguous(bias);  // oneDNN's fused calls read a strided bias as if it were not.
  if (onednn_takes(a, b, plain ? kPlainWork : kFusedWork)) {
    if (!residual.has_value() && !keep) return {fused_unary(a, b, bias_row, activation), nothing(dtype, a)};
    if (activation == Activation::kNone && residual.has_value()) {
      return {fused_add(a, torch::stable::contiguous(*residual), b, bias_row), nothing(dtype, a)};
    }
  }
  const bool empty_product = a.size(1) == 0 || a.size(0) == 0 || b.size(0) == 0;
  const bool bias_in_product = !empty_product && dtype != ScalarType::Half;
  Tensor rough = product(a, b, bias_in_product ? bias_row : std::nullopt);
  if (plain && bias_in_product) return {rough, nothing(dtype, a)};

  const OptionalTensor addend = contiguous(residual);
  const bool same = rough.scalar_type() == dtype;
  LinearOutput result{same ? rough : empty({a.size(0), b.size(0)}, dtype, a),
                      keep ? empty({a.size(0), b.size(0)}, dtype, a) : nothing(dtype, a)};
  EpilogueParams params{};
  params.product = rough.const_data_ptr();
  params.bias = bias_in_product ? nullptr : data_or_null(bias_row);
  params.residual = data_or_null(addend);
  params.output = result.output.mutable_data_ptr();
  params.preact = keep ? result.preact.mutable_data_ptr() : nullptr;
  params.outer = a.size(0);
  params.channels = b.size(0);
  params.inner = 1;
  params.activation = activation;
  params.product_dtype = to_dtype(rough.scalar_type());
  params.dtype = to_dtype(dtype);
  cpu::epilogue_forward(params, nullptr);
  return result;
}

}  // namespace warpwright
