// Bindings of the activation family.

#include "kernels/activation.h"

#include "bindings/common.h"

namespace warpwright {
namespace {

void check_gate(const char* op, const Tensor& gate) {
  check_float(op, "gate", gate);
  WARPWRIGHT_CHECK(gate.dim() >= 1, op, "gate must have at least 1 dimension, got 0");
}

// How many of the last dimensions make a row: all of them where every tensor is contiguous, which makes one long row.
int64_t row_ndim_of(const std::vector<Tensor>& tensors) {
  for (const Tensor& tensor : tensors) {
    if (!tensor.is_contiguous()) return 1;
  }
  return tensors.front().dim();
}

int64_t cols_of(const Tensor& tensor, int64_t row_ndim) {
  int64_t cols = 1;
  for (int64_t d = tensor.dim() - row_ndim; d < tensor.dim(); ++d) cols *= tensor.size(d);
  return cols;
}

Tensor swiglu(Tensor gate, Tensor up) {
  const char* op = "swiglu";
  check_gate(op, gate);
  check_like(op, "up", up, "gate", gate);
  Tensor output = empty(sizes_of(gate), gate.scalar_type(), gate);
  if (gate.numel() == 0) return output;
  Launch launch(gate);
  const int64_t row_ndim = row_ndim_of({gate, up});
  Tensor gate_holder, up_holder;
  SwigluParams params{};
  params.gate = rows_of(gate, row_ndim, gate_holder);
  params.up = rows_of(up, row_ndim, up_holder);
  params.output = output.mutable_data_ptr();
  params.cols = cols_of(gate, row_ndim);
  params.rows = gate.numel() / params.cols;
  params.dtype = to_dtype(gate.scalar_type());
  backend::swiglu(params, launch.stream());
  return output;
}

std::tuple<Tensor, Tensor> swiglu_backward(Tensor grad_output, Tensor gate, Tensor up) {
  const char* op = "swiglu_backward";
  check_gate(op, gate);
  check_like(op, "up", up, "gate", gate);
  check_like(op, "grad_output", grad_output, "gate", gate);
  Tensor grad_gate = empty(sizes_of(gate), gate.scalar_type(), gate);
  Tensor grad_up = empty(sizes_of(gate), gate.scalar_type(), gate);
  if (gate.numel() == 0) return {grad_gate, grad_up};
  Launch launch(gate);
  const int64_t row_ndim = row_ndim_of({grad_output, gate, up});
  Tensor grad_holder, gate_holder, up_holder;
  SwigluBackwardParams params{};
  params.grad_output = rows_of(grad_output, row_ndim, grad_holder);
  params.gate = rows_of(gate, row_ndim, gate_holder);
  params.up = rows_of(up, row_ndim, up_holder);
  params.grad_gate = grad_gate.mutable_data_ptr();
  params.grad_up = grad_up.mutable_data_ptr();
  params.cols = cols_of(gate, row_ndim);
  params.rows = gate.numel() / params.cols;
  params.dtype = to_dtype(gate.scalar_type());
  backend::swiglu_backward(params, launch.stream());
  return {grad_gate, grad_up};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("swiglu", TORCH_BOX(&swiglu));
  m.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
}

}  // namespace warpwright
