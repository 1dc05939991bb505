// Bindings of the embedding family.

#include "kernels/embedding.h"

#include <array>
#include <limits>

#include "bindings/common.h"

namespace warpwright {
namespace {

// Rows are numbered in 32 bits, with one number more for tokens that have no row.
constexpr int64_t kMaxEmbeddings = std::numeric_limits<int32_t>::max() - 1;

void check_index(const char* op, const Tensor& input, const char* like_name, const Tensor& like) {
  const ScalarType dtype = input.scalar_type();
  WARPWRIGHT_CHECK(dtype == ScalarType::Long || dtype == ScalarType::Int, op,
                   "input must be torch.int64 or torch.int32, got ", dtype_name(dtype));
  check_same_device(op, "input", input, like_name, like);
}

// The row that has no gradient, or -1. Negative indices count from the end.
int64_t padding_row(const char* op, std::optional<int64_t> padding_idx, int64_t num_embeddings) {
  if (!padding_idx.has_value()) return -1;
  WARPWRIGHT_CHECK(*padding_idx >= -num_embeddings && *padding_idx < num_embeddings, op, "padding_idx must be in [",
                   -num_embeddings, ", ", num_embeddings, "), got ", *padding_idx);
  return *padding_idx < 0 ? *padding_idx + num_embeddings : *padding_idx;
}

void check_num_embeddings(const char* op, int64_t num_embeddings) {
  WARPWRIGHT_CHECK(num_embeddings >= 0 && num_embeddings <= kMaxEmbeddings, op, "weight must have at most ",
                   kMaxEmbeddings, " rows, got ", num_embeddings);
}

// On a GPU nobody can look at the indices without waiting for it: there the kernels answer a bad one with NaN.
void check_indices([[maybe_unused]] const char* op, [[maybe_unused]] const Rows& index, [[maybe_unused]] int64_t tokens,
                   [[maybe_unused]] int64_t num_embeddings, [[maybe_unused]] DType dtype) {
#if defined(WARPWRIGHT_BACKEND_CPU)
  for (int64_t token = 0; token < tokens; ++token) {
    const int64_t at = index.offset(token);
    const int64_t value = dtype == DType::kInt64 ? static_cast<const int64_t*>(index.data)[at]
                                                 : static_cast<const int32_t*>(index.data)[at];
    WARPWRIGHT_CHECK(value >= 0 && value < num_embeddings, op, "input must be in [0, ", num_embeddings, "), got ",
                     value);
  }
#endif
}

Tensor embedding(Tensor input, Tensor weight, std::optional<int64_t> padding_idx, bool) {
  const char* op = "embedding";
  check_float(op, "weight", weight);
  WARPWRIGHT_CHECK(weight.dim() == 2, op, "weight must have 2 dimensions, got ", weight.dim());
  check_index(op, input, "weight", weight);
  check_num_embeddings(op, weight.size(0));
  padding_row(op, padding_idx, weight.size(0));
  std::vector<int64_t> sizes = sizes_of(input);
  sizes.push_back(weight.size(1));
  Tensor output = empty(sizes, weight.scalar_type(), weight);
  if (input.numel() == 0) return output;

  Tensor weight_holder, index_holder;
  EmbeddingParams params{};
  params.weight = rows_of(weight, 1, weight_holder);
  params.index = rows_of(input, 0, index_holder);
  params.output = output.mutable_data_ptr();
  params.tokens = input.numel();
  params.num_embeddings = weight.size(0);
  params.cols = weight.size(1);
  params.dtype = to_dtype(weight.scalar_type());
  params.index_dtype = to_dtype(input.scalar_type());
  check_indices(op, params.index, params.tokens, params.num_embeddings, params.index_dtype);
  if (output.numel() == 0) return output;
  Launch launch(weight);
  backend::embedding(params, launch.stream());
  return output;
}

#if !defined(WARPWRIGHT_BACKEND_CPU)
// aten::sort.stable, which waits for nothing: the sorted keys, and where each was.
std::tuple<Tensor, Tensor> sort_stable(const Tensor& keys) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t{0}), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}
#endif

Tensor embedding_backward(Tensor grad_output, Tensor input, int64_t num_embeddings, std::optional<int64_t> padding_idx,
                          bool scale_grad_by_freq) {
  const char* op = "embedding_backward";
  check_float(op, "grad_output", grad_output);
  check_index(op, input, "grad_output", grad_output);
  std::vector<int64_t> sizes = sizes_of(input);
  const bool fits = grad_output.dim() == input.dim() + 1;
  sizes.push_back(fits ? grad_output.size(input.dim()) : 0);
  WARPWRIGHT_CHECK(fits && sizes_of(grad_output) == sizes, op, "grad_output must have the shape of input ",
                   shape_text(input.sizes()), " and one dimension more, got ", shape_text(grad_output.sizes()));
  check_num_embeddings(op, num_embeddings);
  const int64_t padding = padding_row(op, padding_idx, num_embeddings);
  const int64_t tokens = input.numel(), cols = sizes.back();
  Tensor grad_weight = empty({num_embeddings, cols}, grad_output.scalar_type(), grad_output);
  if (grad_weight.numel() == 0) return grad_weight;

  Tensor grad_holder, index_holder, keys, order;
  Tensor starts = empty({num_embeddings + 1}, ScalarType::Long, grad_output);
  EmbeddingSegmentsParams segments{};
  segments.index = rows_of(input, 0, index_holder);
  segments.padding = padding;
  segments.starts = static_cast<int64_t*>(starts.mutable_data_ptr());
  segments.tokens = tokens;
  segments.num_embeddings = num_embeddings;
  segments.index_dtype = to_dtype(input.scalar_type());
  check_indices(op, segments.index, tokens, num_embeddings, segments.index_dtype);
  EmbeddingBackwardParams params{};
  params.grad_output = rows_of(grad_output, 1, grad_holder);
  params.grad_weight = grad_weight.mutable_data_ptr();
  params.starts = segments.starts;
  params.tokens = tokens;
  params.num_embeddings = num_embeddings;
  params.cols = cols;
  params.scale_grad_by_freq = scale_grad_by_freq;
  params.dtype = to_dtype(grad_output.scalar_type());

  Launch launch(grad_output);
#if defined(WARPWRIGHT_BACKEND_CPU)
  order = empty({tokens}, ScalarType::Long, grad_output);
  segments.order = static_cast<int64_t*>(order.mutable_data_ptr());
  backend::embedding_segments(segments, launch.stream());
#else
  const Tensor unsorted = empty({tokens}, ScalarType::Int, grad_output);
  segments.keys = static_cast<int32_t*>(unsorted.mutable_data_ptr());
  if (tokens > 0) backend::embedding_keys(segments, launch.stream());
  std::tie(keys, order) = sort_stable(unsorted);
  segments.keys = static_cast<int32_t*>(keys.mutable_data_ptr());
  backend::embedding_starts(segments, launch.stream());
  const Tensor pieces = empty({tokens / kEmbeddingPiece, cols}, ScalarType::Float, grad_output);
  params.keys = segments.keys;
  params.pieces = static_cast<float*>(pieces.mutable_data_ptr());
#endif
  params.order = static_cast<const int64_t*>(order.const_data_ptr());
  backend::embedding_backward(params, launch.stream());
  return grad_weight;
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("embedding", TORCH_BOX(&embedding));
  m.impl("embedding_backward", TORCH_BOX(&embedding_backward));
}

}  // namespace warpwright
