// What the losses behind a linear layer share. Rows are taken a chunk at a time: its logits, their loss, where it is
// wanted the gradient over the logits, and the products with it; then the chunk's memory is the next one's.

#include "bindings/linear_loss.h"

#include <algorithm>

#include "bindings/loss.h"
#include "kernels/linear_loss.h"

namespace warpwright {

Tensor ChunkedLinear::logits(int64_t first) const {
  Epilogue epilogue;
  epilogue.bias = bias;
  return gemm(rows_from(input, first, std::min(chunk, rows() - first)), weight, epilogue, arithmetic).output;
}

namespace {

constexpr int64_t kTile = 128;  // Rows, or columns, of a product's tile.

// Logits that may always exist at once, in bytes, and else how small a part of them all.
constexpr int64_t kChunkBytes = 16 << 20, kChunkPart = 10;

int64_t default_chunk(int64_t rows, const Tensor& weight, int64_t layers) {
  const int64_t row_bytes = layers * weight.size(0) * static_cast<int64_t>(weight.element_size());
  const int64_t chunk = std::max({kChunkBytes / row_bytes, rows / (layers * kChunkPart), int64_t{1}});
  return std::min(chunk >= kTile ? chunk / kTile * kTile : chunk, std::max<int64_t>(rows, 1));
}

}  // namespace

ChunkedLinear chunked_linear(const char* op, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                             std::optional<int64_t> chunk_rows, const std::string& precision, bool batch_invariant,
                             int64_t layers) {
  check_operands(op, input, "weight", weight);
  WARPWRIGHT_CHECK(weight.size(0) >= 1, op, "weight must have at least 1 class, got shape ",
                   shape_text(weight.sizes()));
  check_bias(op, "bias", bias, input, weight.size(0));
  WARPWRIGHT_CHECK(chunk_rows.value_or(1) >= 1, op, "chunk_rows must be positive, got ", *chunk_rows);
  const Tensor matrix = as_matrix(input);
  const int64_t chunk = chunk_rows.value_or(default_chunk(matrix.size(0), weight, layers));
  return {matrix, weight, bias, chunk, to_arithmetic(op, precision, batch_invariant)};
}

// ---- gradients that are added up over the chunks ----

namespace {

// What is added to the weight's gradient exists for some classes at a time: for so many bytes, or else for so small a
// part of them all.
constexpr int64_t kPartBytes = 8 << 20, kWeightParts = 16;

int64_t classes_at_once(const Tensor& weight, ScalarType acc) {
  const int64_t bytes = std::max<int64_t>(weight.size(1), 1) * (acc == ScalarType::Double ? 8 : 4);
  // In whole tiles of a product.
  const int64_t classes = std::max(kPartBytes / bytes, weight.size(0) / kWeightParts);
  return std::max(classes / kTile * kTile, kTile);
}

void add_to(Tensor& sums, const Tensor& addend) {
  Launch launch(sums);
  AccumulateParams params{};
  params.sums = sums.mutable_data_ptr();
  params.addend = addend.const_data_ptr();
  params.count = sums.numel();
  params.dtype = to_dtype(sums.scalar_type());
  if (params.count > 0) backend::accumulate(params, launch.stream());
}

}  // namespace

LinearGrads::LinearGrads(const ChunkedLinear& layer, LinearNeeds needs)
    : layer_(layer), needs_(needs), whole_(layer.chunk >= layer.rows()) {
  const Tensor& input = layer.input;
  const ScalarType dtype = input.scalar_type();
  grad_input_ = needs.input ? empty(sizes_of(input), dtype, input) : nothing(dtype, input);
  grad_weight_ = nothing(dtype, input);
  grad_bias_ = nothing(dtype, input);
}

void LinearGrads::add(const Tensor& grad, int64_t first) {
  if (needs_.input) {
    const Tensor part = gemm(grad, swapped(layer_.weight), {}, layer_.arithmetic).output;
    Tensor rows = rows_from(grad_input_, first, grad.size(0));
    torch::stable::copy_(rows, part);
  }
  if (needs_.weight) add_to_weight(grad, first);
  if (needs_.bias) {
    const int64_t over_rows[] = {0};
    const Tensor part =
        torch::stable::sum(grad, IntHeaderOnlyArrayRef(over_rows, 1), false, acc_dtype(grad.scalar_type()));
    if (first == 0) grad_bias_ = part;
    if (first != 0) add_to(grad_bias_, part);
  }
}

void LinearGrads::add_to_weight(const Tensor& grad, int64_t first) {
  const Tensor rows = swapped(rows_from(layer_.input, first, grad.size(0)));
  Epilogue sums;
  const ScalarType acc = acc_dtype(grad.scalar_type());
  if (!whole_) sums.out_dtype = acc;
  if (first == 0) {
    grad_weight_ = gemm(swapped(grad), rows, sums, layer_.arithmetic).output;
    return;
  }
  const int64_t classes = layer_.classes(), part = classes_at_once(layer_.weight, acc);
  for (int64_t from = 0; from < classes; from += part) {
    const int64_t count = std::min(part, classes - from);
    Tensor columns = grad;
    columns = torch::stable::narrow(columns, 1, from, count);
    const Tensor addend = gemm(swapped(columns), rows, sums, layer_.arithmetic).output;
    Tensor to = rows_from(grad_weight_, from, count);
    add_to(to, addend);
  }
}

std::tuple<Tensor, Tensor, Tensor> LinearGrads::result(const std::vector<int64_t>& input_sizes) {
  const Tensor& input = layer_.input;
  const ScalarType dtype = input.scalar_type();
  if (layer_.rows() == 0) {  // There was no chunk.
    if (needs_.weight) grad_weight_ = empty(sizes_of(layer_.weight), dtype, input);
    if (needs_.bias) grad_bias_ = empty({layer_.classes()}, dtype, input);
    torch::stable::zero_(grad_weight_);
    torch::stable::zero_(grad_bias_);
  }
  if (needs_.input) grad_input_ = torch::stable::view(grad_input_, input_sizes);
  return {grad_input_, torch::stable::to(grad_weight_, dtype), torch::stable::to(grad_bias_, dtype)};
}

namespace {

// ---- what the forward pass left ----

Tensor scaled(const Tensor& grad, const Tensor& by) {
  Tensor output = empty(sizes_of(grad), grad.scalar_type(), grad);
  if (grad.numel() == 0) return output;
  const Tensor input = torch::stable::contiguous(grad);
  Launch launch(grad);
  ScaleParams params{};
  params.input = input.const_data_ptr();
  params.scale = by.const_data_ptr();
  params.output = output.mutable_data_ptr();
  params.count = grad.numel();
  params.dtype = to_dtype(grad.scalar_type());
  params.scale_dtype = to_dtype(by.scalar_type());
  backend::scale(params, launch.stream());
  return output;
}

std::tuple<Tensor, Tensor, Tensor> linear_loss_backward(Tensor grad_loss, Tensor grad_input, Tensor grad_weight,
                                                        Tensor grad_bias) {
  const char* op = "linear_loss_backward";
  check_float(op, "grad_input", grad_input);
  check_grad_loss(op, grad_loss, grad_input, {}, Reduction::kSum);
  check_same_device(op, "grad_weight", grad_weight, "grad_input", grad_input);
  check_same_dtype(op, "grad_weight", grad_weight, "grad_input", grad_input);
  check_same_device(op, "grad_bias", grad_bias, "grad_input", grad_input);
  check_same_dtype(op, "grad_bias", grad_bias, "grad_input", grad_input);
  return {scaled(grad_input, grad_loss), scaled(grad_weight, grad_loss), scaled(grad_bias, grad_loss)};
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) { m.impl("linear_loss_backward", TORCH_BOX(&linear_loss_backward)); }

}  // namespace warpwright
