// Bindings of the rotary family.

#include "kernels/rotary.h"

#include "bindings/common.h"

namespace warpwright {
namespace {

void check_table(const char* op, const char* name, const Tensor& table, const Tensor& input) {
  check_same_device(op, name, table, "input", input);
  const ScalarType dtype = table.scalar_type();
  WARPWRIGHT_CHECK(dtype == ScalarType::Float || dtype == input.scalar_type(), op, name,
                   " must have the dtype of input (", dtype_name(input.scalar_type()), ") or torch.float32, got ",
                   dtype_name(dtype));
  const int64_t dims = table.dim();
  const int64_t batch = input.size(0), sequence = input.size(1), head_dim = input.size(3);
  const bool fits = (dims == 2 || dims == 3) && table.size(dims - 2) == sequence &&
                    2 * table.size(dims - 1) <= head_dim && (dims == 2 || table.size(0) == batch);
  WARPWRIGHT_CHECK(fits, op, name, " must have shape (", sequence, ", n) or (", batch, ", ", sequence,
                   ", n) with 2 * n at most head_dim ", head_dim, ", got ", shape_text(table.sizes()));
}

Tensor rotate(const char* op, const char* input_name, const Tensor& input, const Tensor& cos, const Tensor& sin,
              bool interleaved, bool inverse) {
  check_float(op, input_name, input);
  WARPWRIGHT_CHECK(input.dim() == 4, op, input_name, " must have 4 dimensions (batch, sequence, heads, head_dim), got ",
                   input.dim());
  check_table(op, "cos", cos, input);
  check_table(op, "sin", sin, input);
  check_like(op, "sin", sin, "cos", cos);

  Tensor output = empty(sizes_of(input), input.scalar_type(), input);
  if (input.numel() == 0) return output;
  const Tensor cos_rows = torch::stable::contiguous(cos), sin_rows = torch::stable::contiguous(sin);
  const int64_t dims = cos.dim();
  RotaryParams params{};
  params.input = input.const_data_ptr();
  for (int d = 0; d < 4; ++d) params.input_stride[d] = input.stride(d);
  params.output = output.mutable_data_ptr();
  params.cos = cos_rows.const_data_ptr();
  params.sin = sin_rows.const_data_ptr();
  params.table_row = cos.size(dims - 1);
  params.table_batch = dims == 3 ? cos.size(1) * params.table_row : 0;
  params.batch = input.size(0);
  params.sequence = input.size(1);
  params.heads = input.size(2);
  params.head_dim = input.size(3);
  params.rotary_dim = 2 * params.table_row;
  params.interleaved = interleaved;
  params.inverse = inverse;
  params.dtype = to_dtype(input.scalar_type());
  params.table_dtype = to_dtype(cos.scalar_type());
  Launch launch(input);
  backend::rotary(params, launch.stream());
  return output;
}

Tensor rotary_embedding(Tensor input, Tensor cos, Tensor sin, bool interleaved) {
  return rotate("rotary_embedding", "input", input, cos, sin, interleaved, false);
}

Tensor rotary_embedding_backward(Tensor grad_output, Tensor cos, Tensor sin, bool interleaved) {
  return rotate("rotary_embedding_backward", "grad_output", grad_output, cos, sin, interleaved, true);
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("rotary_embedding", TORCH_BOX(&rotary_embedding));
  m.impl("rotary_embedding_backward", TORCH_BOX(&rotary_embedding_backward));
}

}  // namespace warpwright
