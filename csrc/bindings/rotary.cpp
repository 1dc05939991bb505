// Bindings of the rotary family.

#include "kernels/rotary.h"

#include <cmath>

#include "bindings/rotary.h"

namespace warpwright {
namespace {

// What errors call the operator and its tensors: one public function takes a key, the other does not.
struct Names {
  const char *op, *input, *key;
};

struct Angles {
  OptionalTensor cos, sin, positions;
  std::optional<double> base;
  std::optional<int64_t> rotary_dim;
};

// Where rows are looked up there may be any number of them.
void check_looked_up(const Names& names, const char* name, const Tensor& table, const Tensor& input) {
  check_table_dtype(names.op, name, table, names.input, input);
  const int64_t head_dim = input.size(3);
  WARPWRIGHT_CHECK(table.dim() == 2 && 2 * table.size(1) <= head_dim, names.op, name,
                   " must have shape (rows, n) with 2 * n at most head_dim ", head_dim, ", got ",
                   shape_text(table.sizes()));
}

void check_angles(const Names& names, const Tensor& input, const Angles& angles) {
  const char* op = names.op;
  if (angles.positions.has_value()) {
    const Tensor& positions = *angles.positions;
    check_same_device(op, "positions", positions, names.input, input);
    WARPWRIGHT_CHECK(positions.scalar_type() == ScalarType::Long, op, "positions must be torch.int64, got ",
                     dtype_name(positions.scalar_type()));
    const int64_t dims = positions.dim(), batch = input.size(0), sequence = input.size(1);
    const bool fits =
        (dims == 1 || dims == 2) && positions.size(dims - 1) == sequence && (dims == 1 || positions.size(0) == batch);
    WARPWRIGHT_CHECK(fits, op, "positions must have shape (", sequence, ",) or (", batch, ", ", sequence, "), got ",
                     shape_text(positions.sizes()));
  }
  const bool tables = angles.cos.has_value() && angles.sin.has_value();
  const bool computed = !angles.cos.has_value() && !angles.sin.has_value() && angles.base.has_value();
  WARPWRIGHT_CHECK(tables != computed && tables != angles.base.has_value(), op,
                   "angles must come from cos and sin, or from base alone");
  if (tables) {
    if (angles.positions.has_value()) {
      check_looked_up(names, "cos", *angles.cos, input);
      check_looked_up(names, "sin", *angles.sin, input);
      check_like(op, "sin", *angles.sin, "cos", *angles.cos);
    } else {
      check_tables(op, *angles.cos, *angles.sin, names.input, input);
    }
    WARPWRIGHT_CHECK(!angles.rotary_dim.has_value(), op, "rotary_dim goes with base, got ", *angles.rotary_dim,
                     " beside cos and sin");
    return;
  }
  WARPWRIGHT_CHECK(*angles.base > 0 && std::isfinite(*angles.base), op, "base must be positive and finite, got ",
                   *angles.base);
  const int64_t head_dim = input.size(3), rotary_dim = angles.rotary_dim.value_or(head_dim);
  WARPWRIGHT_CHECK(rotary_dim >= 0 && rotary_dim <= head_dim && rotary_dim % 2 == 0, op,
                   "rotary_dim must be even and at most head_dim ", head_dim, ", got ", rotary_dim);
}

// On a GPU nobody can look at the positions without waiting for it: there the kernels answer a bad one with NaN.
void check_positions([[maybe_unused]] const char* op, [[maybe_unused]] const RotaryParams& params) {
#if defined(WARPWRIGHT_BACKEND_CPU)
  if (params.positions == nullptr || params.cos == nullptr) return;
  for (int64_t b = 0; b < params.batch; ++b) {
    for (int64_t s = 0; s < params.sequence; ++s) {
      const int64_t position = params.positions[b * params.position_batch + s * params.position_at];
      WARPWRIGHT_CHECK(position >= 0 && position < params.table_rows, op, "positions must be in [0, ",
                       params.table_rows, "), got ", position);
    }
  }
#endif
}

RotaryTensor rotary_tensor(const Tensor& input, const Tensor& output) {
  RotaryTensor tensor{};
  tensor.input = input.const_data_ptr();
  for (int d = 0; d < 4; ++d) tensor.stride[d] = input.stride(d);
  tensor.output = const_cast<void*>(output.const_data_ptr());
  tensor.heads = input.size(2);
  return tensor;
}

void set_angles(RotaryParams& params, const Angles& angles, const OptionalTensor& cos, const OptionalTensor& sin) {
  if (angles.positions.has_value()) {
    const int64_t dims = angles.positions->dim();
    params.positions = static_cast<const int64_t*>(angles.positions->const_data_ptr());
    params.position_at = angles.positions->stride(dims - 1);
    params.position_batch = dims == 2 ? angles.positions->stride(0) : 0;
  }
  if (!cos.has_value()) {
    params.base = *angles.base;
    params.rotary_dim = angles.rotary_dim.value_or(params.head_dim);
    return;
  }
  const int64_t dims = cos->dim();
  params.cos = cos->const_data_ptr();
  params.sin = sin->const_data_ptr();
  params.table_row = cos->size(dims - 1);
  params.table_rows = cos->size(dims - 2);
  params.table_batch = dims == 3 ? params.table_rows * params.table_row : 0;
  params.table_dtype = to_dtype(cos->scalar_type());
  params.rotary_dim = 2 * params.table_row;
}

std::tuple<Tensor, Tensor> rotate(const Names& names, const Tensor& input, const OptionalTensor& key,
                                  const Angles& angles, bool interleaved, bool inverse) {
  const char* op = names.op;
  check_heads(op, names.input, input);
  if (key.has_value()) {
    check_same_device(op, names.key, *key, names.input, input);
    check_same_dtype(op, names.key, *key, names.input, input);
    const bool fits = key->dim() == 4 && key->size(0) == input.size(0) && key->size(1) == input.size(1) &&
                      key->size(3) == input.size(3);
    WARPWRIGHT_CHECK(fits, op, names.key, " must have the shape of ", names.input, " ", shape_text(input.sizes()),
                     " but for the number of heads, got ", shape_text(key->sizes()));
  }
  check_angles(names, input, angles);

  Tensor output = empty(sizes_of(input), input.scalar_type(), input);
  Tensor key_output =
      key.has_value() ? empty(sizes_of(*key), input.scalar_type(), input) : nothing(input.scalar_type(), input);
  if (output.numel() == 0 && key_output.numel() == 0) return {output, key_output};
  const OptionalTensor cos = contiguous(angles.cos), sin = contiguous(angles.sin);
  RotaryParams params{};
  params.first = rotary_tensor(input, output);
  if (key.has_value()) params.second = rotary_tensor(*key, key_output);
  params.batch = input.size(0);
  params.sequence = input.size(1);
  params.head_dim = input.size(3);
  set_angles(params, angles, cos, sin);
  params.interleaved = interleaved;
  params.inverse = inverse;
  params.dtype = to_dtype(input.scalar_type());
  check_positions(op, params);
  Launch launch(input);
  backend::rotary(params, launch.stream());
  return {output, key_output};
}

std::tuple<Tensor, Tensor> rotary_embedding(Tensor input, OptionalTensor key, OptionalTensor cos, OptionalTensor sin,
                                            OptionalTensor positions, std::optional<double> base,
                                            std::optional<int64_t> rotary_dim, bool interleaved) {
  const Names names =
      key.has_value() ? Names{"rotary_embedding_qk", "query", "key"} : Names{"rotary_embedding", "input", ""};
  return rotate(names, input, key, {cos, sin, positions, base, rotary_dim}, interleaved, false);
}

std::tuple<Tensor, Tensor> rotary_embedding_backward(Tensor grad_output, OptionalTensor grad_key, OptionalTensor cos,
                                                     OptionalTensor sin, OptionalTensor positions,
                                                     std::optional<double> base, std::optional<int64_t> rotary_dim,
                                                     bool interleaved) {
  return rotate({"rotary_embedding_backward", "grad_output", "grad_key"}, grad_output, grad_key,
                {cos, sin, positions, base, rotary_dim}, interleaved, true);
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("rotary_embedding", TORCH_BOX(&rotary_embedding));
  m.impl("rotary_embedding_backward", TORCH_BOX(&rotary_embedding_backward));
}

}  // namespace warpwright
