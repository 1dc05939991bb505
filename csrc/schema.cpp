// The signature of every operator, one list: the table of contents of the library.
//
// The same signatures serve every backend: torch.ops.warpwright holds the C++ kernels (CPU and CUDA), and
// python/warpwright/_registry.py reads these schemas to define torch.ops.warpwright_triton and
// torch.ops.warpwright_reference. Operators are functional; a trailing underscore marks those that write to an
// argument. An output that a call does not need (say, the pre-activation) is returned with zero elements.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(warpwright, m) {
  // matmul: output = activation(input @ weight.T + bias + residual). `precision` says how float32 is multiplied: ieee,
  // tf32 or tf32x3. `batch_invariant`: a row of the output depends on that row of the input alone, bit for bit.
  m.def(
      "linear(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, str activation, str precision,"
      " bool batch_invariant, bool save_preact) -> (Tensor output, Tensor preact)");
  // `saved` is None without an activation; the pre-activation for gelu, gelu_tanh, silu and hardswish, or where it was
  // kept; else the output.
  m.def(
      "linear_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? saved, str activation, str precision,"
      " bool batch_invariant, bool need_input, bool need_weight, bool need_bias, bool need_residual)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");
  // output = output_scale * activation(alpha * input @ other + bias + beta * residual), (*batch, m, k) @ (*batch, k,
  // n).
  m.def(
      "matmul(Tensor input, Tensor other, Tensor? bias, Tensor? residual, float alpha, float beta, str activation,"
      " float output_scale, ScalarType? out_dtype, str precision, bool batch_invariant, bool save_preact)"
      " -> (Tensor output, Tensor preact)");
  m.def(
      "matmul_backward(Tensor grad_output, Tensor input, Tensor other, Tensor? saved, float alpha, float beta,"
      " str activation, float output_scale, str precision, bool batch_invariant, bool need_input, bool need_other,"
      " bool need_bias, bool need_residual)"
      " -> (Tensor grad_input, Tensor grad_other, Tensor grad_bias, Tensor grad_residual)");

  // gated: output = activation(input @ gate_weight.T + gate_bias) * (input @ up_weight.T + up_bias). With `save` also
  // what the gradient needs: of the gate what linear's `saved` would be, and the second factor. All three are
  // (*, hidden).
  m.def(
      "linear_glu(Tensor input, Tensor gate_weight, Tensor up_weight, Tensor? gate_bias, Tensor? up_bias,"
      " str activation, str precision, bool batch_invariant, bool save) -> (Tensor output, Tensor gate, Tensor up)");
  m.def(
      "linear_glu_backward(Tensor grad_output, Tensor input, Tensor gate_weight, Tensor up_weight, Tensor gate,"
      " Tensor up, str activation, str precision, bool batch_invariant, bool need_input, bool need_gate_weight,"
      " bool need_up_weight, bool need_gate_bias, bool need_up_bias) -> (Tensor grad_input, Tensor grad_gate_weight,"
      " Tensor grad_up_weight, Tensor grad_gate_bias, Tensor grad_up_bias)");
  // output = hidden @ down_weight.T + down_bias + residual, where hidden is linear_glu's output, or without a gate
  // activation(input @ up_weight.T + up_bias); then `gate` has no elements, and `up` is what linear would save.
  m.def(
      "mlp(Tensor input, Tensor up_weight, Tensor down_weight, Tensor? gate_weight, Tensor? up_bias,"
      " Tensor? down_bias, Tensor? gate_bias, Tensor? residual, str activation, str precision, bool batch_invariant,"
      " bool save) -> (Tensor output, Tensor gate, Tensor up)");
  m.def(
      "mlp_backward(Tensor grad_output, Tensor input, Tensor up_weight, Tensor down_weight, Tensor? gate_weight,"
      " Tensor? gate, Tensor up, str activation, str precision, bool batch_invariant, bool need_input,"
      " bool need_up_weight, bool need_down_weight, bool need_gate_weight, bool need_up_bias, bool need_down_bias,"
      " bool need_gate_bias) -> (Tensor grad_input, Tensor grad_up_weight, Tensor grad_down_weight,"
      " Tensor grad_gate_weight, Tensor grad_up_bias, Tensor grad_down_bias, Tensor grad_gate_bias)");
  // packed: linear with a frozen weight of 4- or 8-bit integers, w = scale * (q - zero), one scale (and zero point;
  // without them 2^(bits - 1)) for each `group_size` elements of a row. python/warpwright/ops/packed.py says how
  // `packed` lies.
  m.def(
      "linear_packed(Tensor input, Tensor packed, Tensor scale, Tensor? zero, int bits, int? group_size, Tensor? bias,"
      " Tensor? residual, str activation, str precision, bool batch_invariant, bool save_preact)"
      " -> (Tensor output, Tensor preact)");
  m.def(
      "linear_packed_backward(Tensor grad_output, Tensor packed, Tensor scale, Tensor? zero, Tensor? saved, int bits,"
      " int? group_size, int in_features, str activation, str precision, bool batch_invariant, bool need_input,"
      " bool need_bias, bool need_residual)"
      " -> (Tensor grad_input, Tensor grad_bias, Tensor grad_residual)");
  // `zero` has no elements where the range is symmetric.
  m.def(
      "quantize_packed(Tensor weight, int bits, int? group_size, bool symmetric)"
      " -> (Tensor packed, Tensor scale, Tensor zero)");
  m.def(
      "dequantize_packed(Tensor packed, Tensor scale, Tensor? zero, int bits, int? group_size, int in_features)"
      " -> Tensor");
  // grouped: output[r] = activation(input[r] @ weight[g].T + bias[g]) for the rows r of group g, which end at
  // offsets[g].
  m.def(
      "grouped_matmul(Tensor input, Tensor weight, Tensor offsets, Tensor? bias, str activation, bool batch_invariant,"
      " bool save_preact)"
      " -> (Tensor output, Tensor preact)");
  m.def(
      "grouped_matmul_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor offsets, Tensor? saved,"
      " str activation, bool batch_invariant, bool need_input, bool need_weight, bool need_bias)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  // scaled: output = activation(dequantised input (m, k) @ dequantised other (n, k).T + bias + residual), for 8-bit
  // floats or int8.
  m.def(
      "scaled_matmul(Tensor input, Tensor other, Tensor input_scale, Tensor other_scale, Tensor? bias,"
      " Tensor? residual, str activation, ScalarType out_dtype) -> Tensor");
  // sparse: weights (n, k) of which two of every four neighbours along k are kept, `values` (n, k / 2), and `metadata`
  // (n, ceil(k / 8)), uint8, says which: python/warpwright/ops/sparse.py has its layout. linear_sparse24 is linear on
  // one.
  m.def("prune_24(Tensor weight) -> (Tensor values, Tensor metadata)");
  m.def("dense_from_sparse24(Tensor values, Tensor metadata) -> Tensor");
  m.def("dense_from_sparse24_backward(Tensor grad_output, Tensor metadata) -> Tensor");
  m.def(
      "linear_sparse24(Tensor input, Tensor values, Tensor metadata, Tensor? bias, Tensor? residual, str activation,"
      " str precision, bool batch_invariant, bool save_preact) -> (Tensor output, Tensor preact)");
  m.def(
      "linear_sparse24_backward(Tensor grad_output, Tensor input, Tensor values, Tensor metadata, Tensor? saved,"
      " str activation, str precision, bool batch_invariant, bool need_input, bool need_values, bool need_bias,"
      " bool need_residual)"
      " -> (Tensor grad_input, Tensor grad_values, Tensor grad_bias, Tensor grad_residual)");

  // conv: output = activation(convolution + bias + residual), in one, two or three dimensions; transposed it is the
  // gradient of a convolution by its input. The lists have a number for each dimension; padding may have two for each,
  // those before the input and then those after it; output_padding is empty unless transposed.
  m.def(
      "convolution(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, int[] padding,"
      " int[] dilation, bool transposed, int[] output_padding, int groups, str activation, str precision,"
      " bool save_preact) -> (Tensor output, Tensor preact)");
  m.def(
      "convolution_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? saved, int[] stride,"
      " int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups, str activation,"
      " str precision, bool need_input, bool need_weight, bool need_bias, bool need_residual)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");

  // scaled_conv: output = activation(convolution of dequantised input and weight + bias + dequantised residual),
  // divided by output_scale where out_dtype has 8 bits; residual_scale goes with a residual of 8 bits. The lists are
  // those of convolution.
  m.def(
      "scaled_convolution(Tensor input, Tensor weight, Tensor input_scale, Tensor weight_scale, Tensor? bias,"
      " Tensor? residual, Tensor? residual_scale, Tensor? output_scale, int[] stride, int[] padding, int[] dilation,"
      " int groups, str activation, ScalarType out_dtype) -> Tensor");

  // conv_batch_norm: output = activation(batch_norm(product) + residual), product = convolution + bias. The statistics
  // are batch_norm's, of the product as it is stored. In inference the product is rounded only if it is saved; else it,
  // mean and rstd have no elements.
  m.def(
      "convolution_batch_norm(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, Tensor? running_mean,"
      " Tensor? running_var, Tensor? bn_weight, Tensor? bn_bias, int[] stride, int[] padding, int[] dilation,"
      " int groups, bool training, float momentum, float eps, str activation, str precision,"
      " bool save_product)"
      " -> (Tensor output, Tensor product, Tensor mean, Tensor rstd, Tensor new_running_mean, Tensor new_running_var)");

  // The product and its batch_norm_moments.
  m.def(
      "convolution_moments(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation,"
      " int groups, str precision) -> (Tensor product, Tensor moments)");

  // norm: over the last `normalized_ndim` dimensions of sum = dropout(input) + residual. `sum` has zero elements where
  // it is the input; the statistics have one element a row, in float32 (float64 for float64 input). The weight is
  // weight_offset + weight. Dropout takes its bits from `seed`, one int64, and `offset`: csrc/kernels/philox.h.
  m.def(
      "rms_norm(Tensor input, Tensor? residual, int normalized_ndim, Tensor? weight, float eps, float weight_offset,"
      " float dropout_p, Tensor? seed, int offset) -> (Tensor output, Tensor sum, Tensor rstd)");
  m.def(
      "rms_norm_backward(Tensor grad_output, Tensor? grad_sum, Tensor sum, Tensor? weight, Tensor rstd,"
      " int normalized_ndim, float weight_offset, float dropout_p, Tensor? seed, int offset, bool need_input,"
      " bool need_residual, bool need_weight) -> (Tensor grad_input, Tensor grad_residual, Tensor grad_weight)");
  m.def(
      "layer_norm(Tensor input, Tensor? residual, int normalized_ndim, Tensor? weight, Tensor? bias, float eps,"
      " float weight_offset, float dropout_p, Tensor? seed, int offset)"
      " -> (Tensor output, Tensor sum, Tensor mean, Tensor rstd)");
  m.def(
      "layer_norm_backward(Tensor grad_output, Tensor? grad_sum, Tensor sum, Tensor? weight, Tensor mean,"
      " Tensor rstd, int normalized_ndim, float weight_offset, float dropout_p, Tensor? seed, int offset,"
      " bool need_input, bool need_residual, bool need_weight, bool need_bias)"
      " -> (Tensor grad_input, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");
  // output = input / max(norm, eps), over the last dimension.
  m.def("l2_normalize(Tensor input, float eps) -> (Tensor output, Tensor norm)");
  m.def("l2_normalize_backward(Tensor grad_output, Tensor input, Tensor norm, float eps) -> Tensor");

  // norm_quantize: the norm of sum = input + residual over the last dimension, as quantize_fp8 has its codes and
  // scales.
  m.def(
      "norm_quantize(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, float eps, float weight_offset,"
      " bool centred, int? block_size, ScalarType dtype) -> (Tensor quantized, Tensor scale, Tensor sum)");
  // qk_norm: the RMS norm of each head of query and key, then rotary_embedding, with one rounding.
  m.def(
      "qk_norm_rotary(Tensor query, Tensor key, Tensor? query_weight, Tensor? key_weight, Tensor cos, Tensor sin,"
      " bool interleaved, float eps, float weight_offset)"
      " -> (Tensor query_output, Tensor key_output, Tensor query_rstd, Tensor key_rstd)");
  m.def(
      "qk_norm_rotary_backward(Tensor grad_query, Tensor grad_key, Tensor query, Tensor key, Tensor? query_weight,"
      " Tensor? key_weight, Tensor cos, Tensor sin, Tensor query_rstd, Tensor key_rstd, bool interleaved,"
      " float weight_offset, bool need_query, bool need_key, bool need_query_weight, bool need_key_weight)"
      " -> (Tensor grad_query_input, Tensor grad_key_input, Tensor grad_query_weight, Tensor grad_key_weight)");

  // channel_norm: output = activation((input - mean) * rstd * weight + bias + residual), input (batch, channels, ...),
  // in input's memory format. The statistics are in float32 (float64 for float64 input): group_norm's (batch,
  // num_groups), batch_norm's (channels). Unless `training` batch_norm takes the running statistics; in training it
  // takes the batch's, and returns what becomes of the running ones that are given.
  m.def(
      "group_norm(Tensor input, int num_groups, Tensor? weight, Tensor? bias, float eps, str activation)"
      " -> (Tensor output, Tensor mean, Tensor rstd)");
  m.def(
      "group_norm_backward(Tensor grad_output, Tensor input, int num_groups, Tensor? weight, Tensor? bias, Tensor mean,"
      " Tensor rstd, str activation, bool need_input, bool need_weight, bool need_bias)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "batch_norm(Tensor input, Tensor? running_mean, Tensor? running_var, Tensor? weight, Tensor? bias,"
      " Tensor? residual, bool training, float momentum, float eps, str activation)"
      " -> (Tensor output, Tensor mean, Tensor rstd, Tensor new_running_mean, Tensor new_running_var)");
  // `training`: the statistics are the batch's. grad_residual is made with an activation only: without one it is
  // grad_output.
  m.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual,"
      " Tensor mean, Tensor rstd, bool training, str activation, bool need_input, bool need_weight, bool need_bias,"
      " bool need_residual) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");

  // sync_batch_norm: the stages of a batch norm whose batch is spread over several processes. The moments (3, channels)
  // are mean, variance and number of a process's elements; joined, those of all (processes, 3, channels). The sums (2,
  // channels) are those of the gradient of what goes into the activation, and of its product with xhat.
  m.def("batch_norm_moments(Tensor input) -> Tensor");
  m.def(
      "batch_norm_join(Tensor moments, Tensor? running_mean, Tensor? running_var, float momentum)"
      " -> (Tensor mean, Tensor var, Tensor elements, Tensor new_running_mean, Tensor new_running_var)");
  m.def(
      "batch_norm_sums(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor mean,"
      " Tensor rstd, str activation) -> Tensor");
  m.def(
      "batch_norm_input_grad(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual,"
      " Tensor mean, Tensor rstd, Tensor sums, Tensor elements, str activation, bool need_input, bool need_residual)"
      " -> (Tensor grad_input, Tensor grad_residual)");

  // causal_conv: output = activation(bias + the sum over k of weight[:, k] * x[.., t - (width - 1) + k]), where x is
  // initial_state (batch, channels, width - 1; zeros for none) and then input (batch, channels, length). The final
  // state is the end of x, as long as the initial one.
  m.def(
      "causal_conv1d(Tensor input, Tensor weight, Tensor? bias, Tensor? initial_state, str activation,"
      " bool return_final_state) -> (Tensor output, Tensor final_state)");
  m.def(
      "causal_conv1d_backward(Tensor grad_output, Tensor? grad_final_state, Tensor input, Tensor weight, Tensor? bias,"
      " Tensor? initial_state, str activation, bool need_input, bool need_weight, bool need_bias,"
      " bool need_initial_state)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_initial_state)");
  // The same for a few more inputs, with the state, or its row `state_indices` for each sequence, replaced.
  m.def(
      "causal_conv1d_update_(Tensor(a!) state, Tensor input, Tensor weight, Tensor? bias, Tensor? state_indices,"
      " str activation) -> Tensor");

  // activation: output = activation(input + bias), and gated activation(gate + gate_bias) * (up + up_bias), with biases
  // for the last dimension. Of the activations of linear, or relu_squared.
  m.def("activation(Tensor input, Tensor? bias, str activation) -> Tensor");
  m.def(
      "activation_backward(Tensor grad_output, Tensor input, Tensor? bias, str activation, bool need_input,"
      " bool need_bias) -> (Tensor grad_input, Tensor grad_bias)");
  m.def("glu(Tensor gate, Tensor up, Tensor? gate_bias, Tensor? up_bias, str activation) -> Tensor");
  m.def(
      "glu_backward(Tensor grad_output, Tensor gate, Tensor up, Tensor? gate_bias, Tensor? up_bias, str activation,"
      " bool need_gate, bool need_up, bool need_gate_bias, bool need_up_bias)"
      " -> (Tensor grad_gate, Tensor grad_up, Tensor grad_gate_bias, Tensor grad_up_bias)");

  // softmax: along `dim` of scale * input, or its logarithm, without the elements that a bool `mask` drops (a float one
  // is added), and with `causal`, of (..., rows, cols), without the columns past row + cols - rows.
  m.def("softmax(Tensor input, Tensor? mask, int dim, float scale, bool causal, bool log) -> Tensor");
  m.def(
      "softmax_backward(Tensor grad_output, Tensor output, Tensor? mask, int dim, float scale, bool causal, bool log)"
      " -> Tensor");

  // dropout: output = residual + input * (word >= 2^32 p) / (1 - p), where the words of csrc/kernels/philox.h are those
  // of `seed`, one int64, and `offset`.
  m.def("dropout_add(Tensor input, Tensor? residual, float p, Tensor seed, int offset) -> Tensor");
  m.def("dropout_add_backward(Tensor grad_output, float p, Tensor seed, int offset) -> Tensor");

  // loss: `total`, a scalar, is what a mean is divided by, with zero elements for reduction none. A loss has input's
  // dtype, or with `float32_loss` that of its sums: float32, or float64 for float64 input.
  // `lse` (2, rows) is each row's maximum and the logarithm of the sum of its exponentials below that; `mass` the
  // weight that its target has in all, with zero elements where that is 1; both in the sums' dtype. A softcap of 0 is
  // none. `target` holds classes (int64), or probabilities like input.
  m.def(
      "cross_entropy(Tensor input, Tensor target, Tensor? weight, int ignore_index, str reduction,"
      " float label_smoothing, float z_loss, float softcap, bool float32_loss)"
      " -> (Tensor loss, Tensor lse, Tensor mass, Tensor total)");
  m.def(
      "cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor target, Tensor? weight, Tensor lse, Tensor mass,"
      " Tensor total, int ignore_index, str reduction, float label_smoothing, float z_loss, float softcap,"
      " bool need_input, bool need_target) -> (Tensor grad_input, Tensor grad_target)");

  m.def(
      "nll_loss(Tensor input, Tensor target, Tensor? weight, int ignore_index, str reduction, bool float32_loss)"
      " -> (Tensor loss, Tensor total)");
  m.def(
      "nll_loss_backward(Tensor grad_loss, Tensor input, Tensor target, Tensor? weight, Tensor total,"
      " int ignore_index, str reduction) -> Tensor");
  // Losses of single elements: all tensors have input's shape, any strides. kl_div also takes the reduction batchmean.
  m.def(
      "binary_cross_entropy_with_logits(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight,"
      " str reduction, bool float32_loss) -> Tensor");
  m.def(
      "binary_cross_entropy_with_logits_backward(Tensor grad_loss, Tensor input, Tensor target, Tensor? weight,"
      " Tensor? pos_weight, str reduction, bool need_input, bool need_target)"
      " -> (Tensor grad_input, Tensor grad_target)");
  m.def("kl_div(Tensor input, Tensor target, str reduction, bool log_target, bool float32_loss) -> Tensor");
  m.def(
      "kl_div_backward(Tensor grad_loss, Tensor input, Tensor target, str reduction, bool log_target,"
      " bool need_input, bool need_target) -> (Tensor grad_input, Tensor grad_target)");
  // The loss of linear's output, whose rows are taken `chunk_rows` at a time; by default so many as
  // linear_loss.cpp says, as a number computed from sizes would be a constant of what torch.compile makes. Where
  // gradients are needed of a loss that is reduced, they are those of the loss itself, still to be scaled by its
  // gradient: linear_loss_backward.
  m.def(
      "linear_cross_entropy(Tensor input, Tensor weight, Tensor target, Tensor? bias, Tensor? class_weight,"
      " int ignore_index, str reduction, float label_smoothing, float z_loss, float softcap, int? chunk_rows,"
      " str precision, bool batch_invariant, bool float32_loss, bool need_input, bool need_weight, bool need_bias)"
      " -> (Tensor loss, Tensor lse, Tensor mass, Tensor total, Tensor grad_input, Tensor grad_weight,"
      " Tensor grad_bias)");
  m.def(
      "linear_cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor weight, Tensor target, Tensor? bias,"
      " Tensor? class_weight, Tensor lse, Tensor mass, Tensor total, int ignore_index, str reduction,"
      " float label_smoothing, float z_loss, float softcap, int? chunk_rows, str precision, bool batch_invariant,"
      " bool need_input, bool need_weight, bool need_bias)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  // The divergence of the student's rows from the teacher's, whose layer is a constant.
  m.def(
      "linear_kl_div(Tensor input, Tensor weight, Tensor teacher_input, Tensor teacher_weight, Tensor? bias,"
      " Tensor? teacher_bias, float temperature, str reduction, int? chunk_rows, str precision, bool batch_invariant,"
      " bool float32_loss, bool need_input, bool need_weight, bool need_bias)"
      " -> (Tensor loss, Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "linear_kl_div_backward(Tensor grad_loss, Tensor input, Tensor weight, Tensor teacher_input,"
      " Tensor teacher_weight, Tensor? bias, Tensor? teacher_bias, float temperature, str reduction, int? chunk_rows,"
      " str precision, bool batch_invariant, bool need_input, bool need_weight, bool need_bias)"
      " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "linear_loss_backward(Tensor grad_loss, Tensor grad_input, Tensor grad_weight, Tensor grad_bias)"
      " -> (Tensor scaled_input, Tensor scaled_weight, Tensor scaled_bias)");

  // embedding: output = weight[input]. A row's gradient is the sum over its tokens, in their order.
  m.def("embedding(Tensor input, Tensor weight, int? padding_idx, bool scale_grad_by_freq) -> Tensor");
  m.def(
      "embedding_backward(Tensor grad_output, Tensor input, int num_embeddings, int? padding_idx,"
      " bool scale_grad_by_freq) -> Tensor");

  // rotary: input and key (batch, sequence, heads, head_dim), each with its own number of heads. Angles come from cos
  // and sin, (sequence, rotary_dim / 2) or with a batch in front, or (anything, rotary_dim / 2) where `positions` says
  // which row; or without them from `base`.
  m.def(
      "rotary_embedding(Tensor input, Tensor? key, Tensor? cos, Tensor? sin, Tensor? positions, float? base,"
      " int? rotary_dim, bool interleaved) -> (Tensor output, Tensor key_output)");
  m.def(
      "rotary_embedding_backward(Tensor grad_output, Tensor? grad_key, Tensor? cos, Tensor? sin, Tensor? positions,"
      " float? base, int? rotary_dim, bool interleaved) -> (Tensor grad_input, Tensor grad_key_input)");

  // quantize: to 8-bit floats or int8, with a scale for the tensor, each row, each block of a row or each square of
  // `block_size` x `block_size`; input = scale * quantized. With `transposed` the same of the transposed matrix, else
  // two tensors without elements. `seed`: rounded at random by csrc/kernels/philox.h, else to the nearest.
  m.def(
      "quantize(Tensor input, ScalarType dtype, str granularity, int block_size, int? seed, bool transposed)"
      " -> (Tensor quantized, Tensor scale, Tensor transposed_quantized, Tensor transposed_scale)");
  m.def("dequantize(Tensor input, Tensor scale, str granularity, int block_size, ScalarType dtype) -> Tensor");
  // one scale a row, or one for each `block_size` elements of a row; input = scale * quantized.
  m.def("quantize_fp8(Tensor input, int? block_size, ScalarType dtype) -> (Tensor quantized, Tensor scale)");
  m.def("dequantize_fp8(Tensor input, Tensor scale, int? block_size, ScalarType dtype) -> Tensor");

  // optim: one step of many tensors. `masters` is empty, or holds a float32 copy of each parameter; scales are empty,
  // or the moments are 8-bit codes; maxima are empty, or it is an AMSGrad step; `rounding_seed` asks for stochastic
  // rounding. python/warpwright/_optim_rules.py relies on the order: params, grads, moments, masters, steps, numbers,
  // flags, scalars on the device, scales, maxima, seed.
  m.def(
      "adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
      " Tensor(d!)[] masters, Tensor[] steps, float lr, float beta1, float beta2, float eps, float weight_decay,"
      " bool maximize, Tensor? grad_scale, Tensor? found_inf, Tensor? lr_tensor, Tensor? grad_multiplier,"
      " Tensor(e!)[] exp_avg_scales, Tensor(f!)[] exp_avg_sq_scales,"
      " Tensor(g!)[] max_exp_avg_sqs, int? rounding_seed) -> ()");
  m.def(
      "adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
      " Tensor(d!)[] masters, Tensor[] steps, float lr, float beta1, float beta2, float eps, float weight_decay,"
      " bool maximize, Tensor? grad_scale, Tensor? found_inf, Tensor? lr_tensor, Tensor? grad_multiplier,"
      " Tensor(e!)[] exp_avg_scales, Tensor(f!)[] exp_avg_sq_scales,"
      " Tensor(g!)[] max_exp_avg_sqs, int? rounding_seed) -> ()");
  m.def(
      "lamb_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs,"
      " Tensor(d!)[] masters, Tensor[] steps, float lr, float beta1, float beta2, float eps, float weight_decay,"
      " bool maximize, Tensor? grad_scale, Tensor? found_inf, Tensor? lr_tensor, Tensor? grad_multiplier,"
      " Tensor(e!)[] exp_avg_scales, Tensor(f!)[] exp_avg_sq_scales, int? rounding_seed) -> ()");
  m.def(
      "sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor(c!)[] masters, Tensor[] steps,"
      " float lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize,"
      " Tensor? grad_scale, Tensor? found_inf, Tensor? lr_tensor, Tensor? grad_multiplier,"
      " Tensor(d!)[] momentum_buffer_scales, int? rounding_seed) -> ()");
  m.def(
      "lion_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] masters, Tensor[] steps,"
      " float lr, float beta1, float beta2, float weight_decay, bool maximize, Tensor? grad_scale, Tensor? found_inf,"
      " Tensor? lr_tensor, Tensor? grad_multiplier, Tensor(d!)[] exp_avg_scales, int? rounding_seed) -> ()");

  // multi_tensor: the norm of all elements together, of order 2 or infinity, and 1 where one of them is not finite.
  m.def("multi_tensor_norm(Tensor[] tensors, float order) -> (Tensor norm, Tensor found_inf)");
  // Multiplies in place, and sets `found_inf` to 1 where an element was not finite before.
  m.def("multi_tensor_scale_(Tensor(a!)[] tensors, Tensor multiplier, Tensor(b!)? found_inf) -> ()");
}
