// Bindings of the softmax family.

#include "kernels/softmax.h"

#include <utility>

#include "bindings/common.h"

namespace warpwright {
namespace {

const char* softmax_name(bool log) { return log ? "log_softmax" : "softmax"; }
const char* backward_name(bool log) { return log ? "log_softmax_backward" : "softmax_backward"; }

// Which dimension, counted from the front.
int64_t checked_dim(const char* op, const char* name, const Tensor& tensor, int64_t dim, bool causal) {
  const int64_t ndim = tensor.dim();
  WARPWRIGHT_CHECK(ndim >= 1, op, name, " must have at least 1 dimension, got 0");
  WARPWRIGHT_CHECK(dim >= -ndim && dim < ndim, op, "dim must be between ", -ndim, " and ", ndim - 1, " for ", name, " ",
                   shape_text(tensor.sizes()), ", got ", dim);
  const int64_t place = dim < 0 ? dim + ndim : dim;
  WARPWRIGHT_CHECK(!causal || (ndim >= 2 && place == ndim - 1), op, "causal needs ", name,
                   " of at least 2 dimensions and dim to be the last, got ", shape_text(tensor.sizes()), " and ", dim);
  constexpr int64_t kMostRows = int64_t{1} << 32;
  WARPWRIGHT_CHECK(!causal || tensor.numel() < kMostRows * (tensor.size(place) < 1 ? 1 : tensor.size(place)), op,
                   "causal takes fewer than 2^32 rows, got ", name, " ", shape_text(tensor.sizes()));
  return place;
}

void check_mask(const char* op, const OptionalTensor& mask, const char* name, const Tensor& input) {
  if (!mask.has_value()) return;
  check_same_device(op, "mask", *mask, name, input);
  WARPWRIGHT_CHECK(mask->scalar_type() == ScalarType::Bool || mask->scalar_type() == input.scalar_type(), op,
                   "mask must be torch.bool or have the dtype of ", name, " (", dtype_name(input.scalar_type()),
                   "), got ", dtype_name(mask->scalar_type()));
  const auto from = mask->sizes(), to = input.sizes();
  bool fits = from.size() <= to.size();
  for (size_t d = 0; fits && d < from.size(); ++d) {
    const int64_t size = from[from.size() - 1 - d];
    fits = size == 1 || size == to[to.size() - 1 - d];
  }
  WARPWRIGHT_CHECK(fits, op, "mask must be broadcastable to ", name, " ", shape_text(to), ", got ", shape_text(from));
}

// The tensor with dimension `dim` last: where it lies.
Tensor with_last(const Tensor& tensor, int64_t dim) {
  std::vector<int64_t> sizes = sizes_of(tensor), strides(tensor.strides().begin(), tensor.strides().end());
  sizes.push_back(sizes[dim]);
  strides.push_back(strides[dim]);
  sizes.erase(sizes.begin() + dim);
  strides.erase(strides.begin() + dim);
  return seen_as(tensor, sizes, strides);
}

// A mask with the sizes of `like`, repeated by strides of 0.
Tensor expanded(const Tensor& mask, const Tensor& like) {
  std::vector<int64_t> strides(like.dim(), 0);
  const int64_t missing = like.dim() - mask.dim();
  for (int64_t d = 0; d < mask.dim(); ++d) strides[d + missing] = mask.size(d) == 1 ? 0 : mask.stride(d);
  return seen_as(mask, sizes_of(like), strides);
}

SoftmaxBounds bounds_of(const OptionalTensor& mask, const Tensor& input, int64_t dim, bool causal, Tensor& holder) {
  SoftmaxBounds bounds{};
  bounds.cols = input.size(dim);
  bounds.causal_rows = causal ? input.size(dim - 1) : 0;
  if (!mask.has_value()) return bounds;
  bounds.mask = rows_of(with_last(expanded(*mask, input), dim), 1, holder);
  bounds.kind = mask->scalar_type() == ScalarType::Bool ? SoftmaxMask::kKeep : SoftmaxMask::kAdd;
  return bounds;
}

Tensor softmax(Tensor input, OptionalTensor mask, int64_t dim, double scale, bool causal, bool log) {
  const char* op = softmax_name(log);
  check_float(op, "input", input);
  const int64_t place = checked_dim(op, "input", input, dim, causal);
  check_mask(op, mask, "input", input);
  Tensor output = empty(sizes_of(input), input.scalar_type(), input);
  if (input.numel() == 0) return output;
  Launch launch(input);
  Tensor input_holder, output_holder, mask_holder;
  SoftmaxParams params{};
  params.input = rows_of(with_last(input, place), 1, input_holder);
  params.output = rows_of(with_last(output, place), 1, output_holder);
  params.bounds = bounds_of(mask, input, place, causal, mask_holder);
  params.cols = input.size(place);
  params.rows = input.numel() / params.cols;
  params.scale = scale;
  params.log = log;
  params.dtype = to_dtype(input.scalar_type());
  backend::softmax(params, launch.stream());
  return output;
}

Tensor softmax_backward(Tensor grad_output, Tensor output, OptionalTensor mask, int64_t dim, double scale, bool causal,
                        bool log) {
  const char* op = backward_name(log);
  check_float(op, "output", output);
  check_like(op, "grad_output", grad_output, "output", output);
  const int64_t place = checked_dim(op, "output", output, dim, causal);
  check_mask(op, mask, "output", output);
  Tensor grad_input = empty(sizes_of(output), output.scalar_type(), output);
  if (output.numel() == 0) return grad_input;
  Launch launch(output);
  Tensor grad_holder, output_holder, input_holder, mask_holder;
  SoftmaxBackwardParams params{};
  params.grad_output = rows_of(with_last(grad_output, place), 1, grad_holder);
  params.output = rows_of(with_last(output, place), 1, output_holder);
  params.grad_input = rows_of(with_last(grad_input, place), 1, input_holder);
  params.bounds = bounds_of(mask, output, place, causal, mask_holder);
  params.cols = output.size(place);
  params.rows = output.numel() / params.cols;
  params.scale = scale;
  params.log = log;
  params.dtype = to_dtype(output.scalar_type());
  backend::softmax_backward(params, launch.stream());
  return grad_input;
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("softmax", TORCH_BOX(&softmax));
  m.impl("softmax_backward", TORCH_BOX(&softmax_backward));
}

}  // namespace warpwright
