// Bindings of the qk_norm family.

#include "kernels/qk_norm.h"

#include "bindings/rotary.h"

namespace warpwright {
namespace {

void check_weight(const char* op, const char* name, const OptionalTensor& weight, double weight_offset,
                  const char* side_name, const Tensor& side) {
  WARPWRIGHT_CHECK(weight.has_value() || weight_offset == 0, op, name, " must be given with weight_offset");
  if (!weight.has_value()) return;
  check_same_device(op, name, *weight, side_name, side);
  check_same_dtype(op, name, *weight, side_name, side);
  const std::vector<int64_t> expected{side.size(3)};
  WARPWRIGHT_CHECK(sizes_of(*weight) == expected, op, name, " must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(expected)), ", got ", shape_text(weight->sizes()));
}

void check_inputs(const char* op, const Tensor& query, const Tensor& key, const OptionalTensor& query_weight,
                  const OptionalTensor& key_weight, const Tensor& cos, const Tensor& sin, double weight_offset) {
  check_heads(op, "query", query);
  check_heads(op, "key", key);
  check_same_device(op, "key", key, "query", query);
  check_same_dtype(op, "key", key, "query", query);
  const bool fits = key.size(0) == query.size(0) && key.size(1) == query.size(1) && key.size(3) == query.size(3);
  WARPWRIGHT_CHECK(fits, op, "key must have the batch, sequence and head_dim of query ", shape_text(query.sizes()),
                   ", got ", shape_text(key.sizes()));
  WARPWRIGHT_CHECK(query.size(3) <= kMaxHeadDim, op, "head_dim must be at most ", kMaxHeadDim, ", got ", query.size(3));
  for (const Tensor* side : {&query, &key}) {
    WARPWRIGHT_CHECK(side->size(0) * side->size(1) * side->size(2) <= kMaxHeads, op,
                     "batch * sequence * heads must be at most ", kMaxHeads, ", got ", shape_text(side->sizes()));
  }
  check_weight(op, "query_weight", query_weight, weight_offset, "query", query);
  check_weight(op, "key_weight", key_weight, weight_offset, "key", key);
  check_tables(op, cos, sin, "query", query);
}

void check_rstd(const char* op, const char* name, const Tensor& rstd, const char* side_name, const Tensor& side) {
  check_same_device(op, name, rstd, side_name, side);
  const int64_t heads = side.size(0) * side.size(1) * side.size(2);
  const ScalarType dtype = acc_dtype(side.scalar_type());
  WARPWRIGHT_CHECK(rstd.numel() == heads && rstd.scalar_type() == dtype, op, name, " must hold ", heads,
                   " elements of ", dtype_name(dtype), ", got ", rstd.numel(), " of ", dtype_name(rstd.scalar_type()));
}

// What both sides share. The tables must outlive the launch.
QkNormParams params_of(const Tensor& query, const Tensor& cos, const Tensor& sin, bool interleaved, double eps,
                       double weight_offset) {
  QkNormParams params{};
  const int64_t dims = cos.dim();
  params.cos = cos.const_data_ptr();
  params.sin = sin.const_data_ptr();
  params.table_row = cos.size(dims - 1);
  params.table_batch = dims == 3 ? cos.size(1) * params.table_row : 0;
  params.batch = query.size(0);
  params.sequence = query.size(1);
  params.head_dim = query.size(3);
  params.rotary_dim = 2 * params.table_row;
  params.eps = eps;
  params.weight_offset = weight_offset;
  params.interleaved = interleaved;
  params.dtype = to_dtype(query.scalar_type());
  params.table_dtype = to_dtype(cos.scalar_type());
  return params;
}

void set_input(QkNormSide& side, const Tensor& x, const OptionalTensor& weight_row, void* rstd) {
  side.x = x.const_data_ptr();
  for (int d = 0; d < 4; ++d) side.x_stride[d] = x.stride(d);
  side.weight = data_or_null(weight_row);
  side.rstd = rstd;
  side.heads = x.size(2);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> qk_norm_rotary(Tensor query, Tensor key, OptionalTensor query_weight,
                                                          OptionalTensor key_weight, Tensor cos, Tensor sin,
                                                          bool interleaved, double eps, double weight_offset) {
  check_inputs("qk_norm_rotary", query, key, query_weight, key_weight, cos, sin, weight_offset);
  const Tensor cos_rows = torch::stable::contiguous(cos), sin_rows = torch::stable::contiguous(sin);
  QkNormParams params = params_of(query, cos_rows, sin_rows, interleaved, eps, weight_offset);
  const Tensor* inputs[2] = {&query, &key};
  const OptionalTensor weights[2] = {contiguous(query_weight), contiguous(key_weight)};
  std::vector<Tensor> outputs, rstds;
  for (int i = 0; i < 2; ++i) {
    const Tensor& x = *inputs[i];
    outputs.push_back(empty(sizes_of(x), x.scalar_type(), x));
    rstds.push_back(empty({x.size(0), x.size(1), x.size(2)}, acc_dtype(x.scalar_type()), x));
    set_input(params.sides[i], x, weights[i], rstds[i].mutable_data_ptr());
    params.sides[i].output = outputs[i].mutable_data_ptr();
  }
  Launch launch(query);
  backend::qk_norm_forward(params, launch.stream());
  return {outputs[0], outputs[1], rstds[0], rstds[1]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> qk_norm_rotary_backward(Tensor grad_query, Tensor grad_key, Tensor query,
                                                                   Tensor key, OptionalTensor query_weight,
                                                                   OptionalTensor key_weight, Tensor cos, Tensor sin,
                                                                   Tensor query_rstd, Tensor key_rstd, bool interleaved,
                                                                   double weight_offset, bool need_query, bool need_key,
                                                                   bool need_query_weight, bool need_key_weight) {
  const char* op = "qk_norm_rotary_backward";
  check_inputs(op, query, key, query_weight, key_weight, cos, sin, weight_offset);
  check_like(op, "grad_query", grad_query, "query", query);
  check_like(op, "grad_key", grad_key, "key", key);
  check_rstd(op, "query_rstd", query_rstd, "query", query);
  check_rstd(op, "key_rstd", key_rstd, "key", key);
  const Tensor cos_rows = torch::stable::contiguous(cos), sin_rows = torch::stable::contiguous(sin);
  QkNormParams params = params_of(query, cos_rows, sin_rows, interleaved, 0, weight_offset);
  const Tensor *inputs[2] = {&query, &key}, *grads[2] = {&grad_query, &grad_key};
  const Tensor rstds[2] = {torch::stable::contiguous(query_rstd), torch::stable::contiguous(key_rstd)};
  const OptionalTensor weights[2] = {contiguous(query_weight), contiguous(key_weight)};
  const bool need_input[2] = {need_query, need_key}, need_weight[2] = {need_query_weight, need_key_weight};
  std::vector<Tensor> of_input, of_weight, partials;
  for (int i = 0; i < 2; ++i) {
    const Tensor& x = *inputs[i];
    const ScalarType dtype = x.scalar_type();
    const int64_t heads = x.size(0) * x.size(1) * x.size(2), head_dim = x.size(3);
    of_input.push_back(need_input[i] ? empty(sizes_of(x), dtype, x) : nothing(dtype, x));
    of_weight.push_back(need_weight[i] ? empty({head_dim}, dtype, x) : nothing(dtype, x));
    const std::vector<int64_t> partials_shape{need_weight[i] ? qk_norm_partials(heads) : 0, head_dim};
    partials.push_back(empty(partials_shape, acc_dtype(dtype), x));
    QkNormSide& side = params.sides[i];
    set_input(side, x, weights[i], const_cast<void*>(rstds[i].const_data_ptr()));
    side.grad = grads[i]->const_data_ptr();
    for (int d = 0; d < 4; ++d) side.grad_stride[d] = grads[i]->stride(d);
    side.output = need_input[i] ? of_input[i].mutable_data_ptr() : nullptr;
    side.grad_weight = need_weight[i] ? of_weight[i].mutable_data_ptr() : nullptr;
    side.partials = need_weight[i] ? partials[i].mutable_data_ptr() : nullptr;
  }
  Launch launch(query);
  backend::qk_norm_backward(params, launch.stream());
  return {of_input[0], of_input[1], of_weight[0], of_weight[1]};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("qk_norm_rotary", TORCH_BOX(&qk_norm_rotary));
  m.impl("qk_norm_rotary_backward", TORCH_BOX(&qk_norm_rotary_backward));
}

}  // namespace warpwright
