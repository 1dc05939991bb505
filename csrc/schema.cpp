// The signature of every operator, one list: the table of contents of the library.
//
// The same signatures serve every backend: torch.ops.warpwright holds the C++ kernels (CPU and CUDA), and
// python/warpwright/_registry.py reads these schemas to define torch.ops.warpwright_triton and
// torch.ops.warpwright_reference. Operators are functional; a trailing underscore marks those that write to an
// argument. An output that a call does not need (say, the pre-activation) is returned with zero elements.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(warpwright, m) {
  // matmul: output = activation(input @ weight.T + bias + residual).
  m.def(
      "linear(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, str activation, bool save_preact)"
      " -> (Tensor output, Tensor preact)");
  // `saved` is the output for relu, the pre-activation for the other activations, None without one.
  m.def(
      "linear_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? saved, str activation,"
      " bool need_input, bool need_weight, bool need_bias, bool need_residual)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");

  // conv: output = activation(conv2d(input, weight) + bias + residual).
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, int[] padding,"
      " int[] dilation, int groups, str activation, bool save_preact) -> (Tensor output, Tensor preact)");
  m.def(
      "conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? saved, int[] stride, int[] padding,"
      " int[] dilation, int groups, str activation, bool need_input, bool need_weight, bool need_bias,"
      " bool need_residual) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");

  // norm: over the last `normalized_ndim` dimensions of sum = input + residual. `sum` has zero elements without a
  // residual; the statistics have one element a row, in float32 (float64 for float64 input).
  m.def(
      "rms_norm(Tensor input, Tensor? residual, int normalized_ndim, Tensor? weight, float eps)"
      " -> (Tensor output, Tensor sum, Tensor rstd)");
  m.def(
      "rms_norm_backward(Tensor grad_output, Tensor? grad_sum, Tensor sum, Tensor? weight, Tensor rstd,"
      " int normalized_ndim, bool need_input, bool need_weight) -> (Tensor grad_input, Tensor grad_weight)");
  m.def(
      "layer_norm(Tensor input, Tensor? residual, int normalized_ndim, Tensor? weight, Tensor? bias, float eps)"
      " -> (Tensor output, Tensor sum, Tensor mean, Tensor rstd)");
  m.def(
      "layer_norm_backward(Tensor grad_output, Tensor? grad_sum, Tensor sum, Tensor? weight, Tensor mean,"
      " Tensor rstd, int normalized_ndim, bool need_input, bool need_weight, bool need_bias)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");

  // activation: output = silu(gate) * up.
  m.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  m.def("swiglu_backward(Tensor grad_output, Tensor gate, Tensor up) -> (Tensor grad_gate, Tensor grad_up)");

  // loss: `lse` is the log-sum-exp of each row, in float32 (float64 for float64 input); `valid`, an int64, the number
  // of rows that count, with zero elements for reduction none. The loss has input's dtype, or with `float32_loss`
  // lse's.
  m.def(
      "cross_entropy(Tensor input, Tensor target, int ignore_index, str reduction, float label_smoothing,"
      " bool float32_loss) -> (Tensor loss, Tensor lse, Tensor valid)");
  m.def(
      "cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor target, Tensor lse, Tensor valid,"
      " int ignore_index, str reduction, float label_smoothing) -> Tensor");

  // rotary: input (batch, sequence, heads, head_dim); cos and sin (sequence, rotary_dim / 2) or with a batch in front.
  m.def("rotary_embedding(Tensor input, Tensor cos, Tensor sin, bool interleaved) -> Tensor");
  m.def("rotary_embedding_backward(Tensor grad_output, Tensor cos, Tensor sin, bool interleaved) -> Tensor");

  // quantize: one scale a row, or one for each `block_size` elements of a row; input = scale * quantized.
  m.def("quantize_fp8(Tensor input, int? block_size, ScalarType dtype) -> (Tensor quantized, Tensor scale)");
  m.def("dequantize_fp8(Tensor input, Tensor scale, int? block_size, ScalarType dtype) -> Tensor");

  // optim: one multi-tensor AdamW step. `masters` is empty, or holds a float32 copy of each parameter.
  m.def(
      "adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
      " Tensor(d!)[] masters, Tensor[] steps, float lr, float beta1, float beta2, float eps, float weight_decay,"
      " bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()");
}
