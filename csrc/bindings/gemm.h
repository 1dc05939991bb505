// What the ops of the matmul family and convolution ask of a backend's matrix product. bindings/matmul.cpp defines it
// for CUDA and the emulator, bindings/onednn/matmul.cpp for the CPU.

#pragma once

#include "bindings/common.h"
#include "kernels/matmul.h"

namespace warpwright {

struct ProductOutput {
  Tensor output;  // (*batch, m, n)
  Tensor preact;  // (*batch, m, n), or no elements
};

// What follows the products' sums, see GemmParams.
struct Epilogue {
  OptionalTensor bias = {}, residual = {};  // (n); (*batch, m, n); any strides
  double alpha = 1, beta = 1, output_scale = 1;
  Activation activation = Activation::kNone;
  std::optional<ScalarType> out_dtype = {};
  bool save_preact = false;  // What the activation's gradient is taken from, where that is not the output.

  ScalarType output_dtype(ScalarType dtype) const { return out_dtype.value_or(dtype); }
  // Whether there is more to save than the output: that serves where it is the activation's value itself.
  bool keeps_preact(ScalarType dtype) const {
    const bool own = output_dtype(dtype) == dtype && output_scale == 1;
    return save_preact && activation != Activation::kNone && (needs_preact(activation) || !own);
  }
  // Whether the product and its bias are all there is.
  bool plain(ScalarType dtype) const {
    return activation == Activation::kNone && !residual.has_value() && alpha == 1 && output_scale == 1 &&
           output_dtype(dtype) == dtype;
  }
};

// How the sums are taken, see GemmParams.
struct Arithmetic {
  Precision precision = Precision::kIeee;
  bool batch_invariant = false;
};

// For a (*batch, m, k) and b (*batch, n, k) of any strides, of the same batch.
ProductOutput gemm(const Tensor& a, const Tensor& b, const Epilogue& epilogue, Arithmetic arithmetic);

// The batch dimensions of a product with those merged that every operand walks with one stride.
struct BatchView {
  Tensor a, b;
  OptionalTensor residual;  // Copies, where more than kMaxBatchDims dimensions would remain.
  int64_t size[kMaxBatchDims], a_stride[kMaxBatchDims], b_stride[kMaxBatchDims], residual_stride[kMaxBatchDims];
};
BatchView batch_view(const Tensor& a, const Tensor& b, const OptionalTensor& residual);
// Operands, batch, sizes and dtype; the rest is zero.
GemmParams product_params(const BatchView& view);
// Of a matrix a (m, k) and n columns that lie as their own family says; results are finished by set_epilogue.
GemmParams matrix_params(const Tensor& a, int64_t n, Arithmetic arithmetic);

#if !defined(WARPWRIGHT_BACKEND_CPU)
// What a product of these sizes (*batch, m, n) is written to.
ProductOutput empty_product(const std::vector<int64_t>& sizes, const Epilogue& epilogue, const Tensor& like);
// All that follows the sums, and where it goes. `bias` is the epilogue's in one piece, `residual` the epilogue's as the
// batch is walked.
void set_epilogue(GemmParams& params, const Epilogue& epilogue, const OptionalTensor& bias,
                  const OptionalTensor& residual, const ProductOutput& result);
#endif

// ---- what the ops that project features share ----

// The leading dimensions as one: a view where the strides allow it.
Tensor as_matrix(const Tensor& tensor);
// The last two dimensions exchanged.
Tensor swapped(const Tensor& tensor);
// input's, with another last dimension.
std::vector<int64_t> output_sizes(const Tensor& input, int64_t features);
Arithmetic to_arithmetic(const char* op, const std::string& precision, bool batch_invariant);

// Throws unless `weight`, an argument called `name`, takes input's features.
void check_operands(const char* op, const Tensor& input, const char* name, const Tensor& weight);
void check_bias(const char* op, const char* name, const OptionalTensor& bias, const Tensor& input, int64_t features);
void check_output_like(const char* op, const char* name, const Tensor& tensor, const Tensor& input,
                       const std::vector<int64_t>& sizes);

#if defined(WARPWRIGHT_BACKEND_CPU)
// A product (*batch, m, n), in float32 or in `dtype`, with everything else that the epilogue says; `bias_is_in` where
// its bias was added before.
ProductOutput finish_product(const Tensor& product, const Epilogue& epilogue, ScalarType dtype, bool bias_is_in);
// Writes a @ b, which have elements, to a matrix of theirs; not in float16.
void product_into(const Tensor& to, const Tensor& a, const Tensor& b);
#endif

// The gradient of a residual of these sizes, from that of the pre-activation as a matrix.
Tensor residual_grad(const Tensor& grad_preact, Activation activation, const std::vector<int64_t>& sizes);

struct EpilogueGrads {
  Tensor grad_preact;  // (..., cols); grad_output itself without an activation and a scale
  Tensor grad_bias;    // (channels), or no elements
};

// Backward of an epilogue over tensors seen as (..., cols) with channels in the columns, or in the rows. Gradients are
// `scale` times the activation's.
EpilogueGrads epilogue_grads(const Tensor& grad_output, const OptionalTensor& saved, Activation activation,
                             int64_t channels, bool channels_in_rows, bool need_preact, bool need_bias,
                             double scale = 1);

// Throws unless `saved` is there for an activation, absent without one, and like grad_output.
void check_saved(const char* op, const OptionalTensor& saved, Activation activation, const Tensor& grad_output);

}  // namespace warpwright
