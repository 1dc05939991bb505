// Bindings of the rotary family.

#include "kernels/rotary.h"

#include "bindings/rotary.h"

namespace warpwright {
namespace {

Tensor rotate(const char* op, const char* input_name, const Tensor& input, const Tensor& cos, const Tensor& sin,
              bool interleaved, bool inverse) {
  check_heads(op, input_name, input);
  check_tables(op, cos, sin, "input", input);

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
