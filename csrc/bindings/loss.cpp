// Bindings of the loss family.

#include "kernels/loss.h"

#include "bindings/common.h"

namespace warpwright {
namespace {

Reduction to_reduction(const char* op, const std::string& name) {
  if (name == "none") return Reduction::kNone;
  if (name == "mean") return Reduction::kMean;
  if (name == "sum") return Reduction::kSum;
  fail(op, "reduction must be one of none, mean, sum, got '", name, "'");
}

// The class dimension is the second, or the only one.
int64_t class_dim(const Tensor& input) { return input.dim() == 1 ? 0 : 1; }

void check_arguments(const char* op, const Tensor& input, const Tensor& target, double label_smoothing) {
  check_float(op, "input", input);
  WARPWRIGHT_CHECK(input.dim() >= 1, op, "input must have at least 1 dimension, got 0");
  WARPWRIGHT_CHECK(input.size(class_dim(input)) >= 1, op, "input must have at least 1 class, got shape ",
                   shape_text(input.sizes()));
  check_same_device(op, "target", target, "input", input);
  WARPWRIGHT_CHECK(target.scalar_type() == ScalarType::Long, op, "target must be torch.int64, got ",
                   dtype_name(target.scalar_type()));
  std::vector<int64_t> expected = sizes_of(input);
  expected.erase(expected.begin() + class_dim(input));
  WARPWRIGHT_CHECK(sizes_of(target) == expected, op, "target must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(expected)), ", got ", shape_text(target.sizes()));
  WARPWRIGHT_CHECK(label_smoothing >= 0 && label_smoothing <= 1, op, "label_smoothing must be between 0 and 1, got ",
                   label_smoothing);
}

// On a GPU nobody can look at the targets without waiting for it: there the kernels answer a bad one with NaN.
void check_targets([[maybe_unused]] const char* op, [[maybe_unused]] const Rows& target, [[maybe_unused]] int64_t rows,
                   [[maybe_unused]] int64_t classes, [[maybe_unused]] int64_t ignore_index) {
#if defined(WARPWRIGHT_BACKEND_CPU)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t value = static_cast<const int64_t*>(target.data)[target.offset(row)];
    WARPWRIGHT_CHECK((value >= 0 && value < classes) || value == ignore_index, op, "target must be in [0, ", classes,
                     ") or be ignore_index (", ignore_index, "), got ", value);
  }
#endif
}

// (N, C, d1, ...) seen as (N, d1, ..., C).
Tensor classes_last(Tensor tensor) {
  for (int64_t d = 1; d + 1 < tensor.dim(); ++d) tensor = torch::stable::transpose(tensor, d, d + 1);
  return tensor;
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy(Tensor input, Tensor target, int64_t ignore_index,
                                                 std::string reduction_name, double label_smoothing,
                                                 bool float32_loss) {
  const char* op = "cross_entropy";
  check_arguments(op, input, target, label_smoothing);
  const Reduction reduction = to_reduction(op, reduction_name);
  const bool reduced = reduction != Reduction::kNone;
  const ScalarType acc = acc_dtype(input.scalar_type());
  const ScalarType loss_dtype = float32_loss ? acc : input.scalar_type();
  const int64_t rows = target.numel(), partials = loss_partials(rows);

  Tensor input_holder, target_holder;
  CrossEntropyParams params{};
  params.input = rows_of(classes_last(input), 1, input_holder);
  params.target = rows_of(target, 0, target_holder);
  params.rows = rows;
  params.cols = input.size(class_dim(input));
  params.ignore_index = ignore_index;
  check_targets(op, params.target, params.rows, params.cols, ignore_index);

  Tensor loss = empty(reduced ? std::vector<int64_t>{} : sizes_of(target), loss_dtype, input);
  Tensor lse = empty(sizes_of(target), acc, input);
  Tensor valid = reduced ? empty({}, ScalarType::Long, input) : nothing(ScalarType::Long, input);
  Tensor row_loss = reduced ? empty({rows}, acc, input) : loss;
  Tensor partial_loss, partial_valid;
  if (reduced) {
    partial_loss = empty({partials}, acc, input);
    partial_valid = empty({partials}, ScalarType::Long, input);
    params.partial_loss = partial_loss.mutable_data_ptr();
    params.partial_valid = static_cast<int64_t*>(partial_valid.mutable_data_ptr());
    params.loss = loss.mutable_data_ptr();
    params.valid = static_cast<int64_t*>(valid.mutable_data_ptr());
  }
  params.row_loss = row_loss.mutable_data_ptr();
  params.lse = lse.mutable_data_ptr();
  params.label_smoothing = label_smoothing;
  params.reduction = reduction;
  params.dtype = to_dtype(input.scalar_type());
  params.row_loss_dtype = to_dtype(row_loss.scalar_type());
  params.loss_dtype = to_dtype(loss_dtype);
  Launch launch(input);
  backend::cross_entropy(params, launch.stream());
  return {loss, lse, valid};
}

Tensor cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor target, Tensor lse, Tensor valid,
                              int64_t ignore_index, std::string reduction_name, double label_smoothing) {
  const char* op = "cross_entropy_backward";
  check_arguments(op, input, target, label_smoothing);
  const Reduction reduction = to_reduction(op, reduction_name);
  const ScalarType acc = acc_dtype(input.scalar_type());
  check_same_device(op, "grad_loss", grad_loss, "input", input);
  WARPWRIGHT_CHECK(grad_loss.scalar_type() == input.scalar_type() || grad_loss.scalar_type() == acc, op,
                   "grad_loss must be ", dtype_name(input.scalar_type()), " or ", dtype_name(acc), ", got ",
                   dtype_name(grad_loss.scalar_type()));
  const std::vector<int64_t> loss_sizes = reduction == Reduction::kNone ? sizes_of(target) : std::vector<int64_t>{};
  WARPWRIGHT_CHECK(sizes_of(grad_loss) == loss_sizes, op, "grad_loss must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(loss_sizes)), ", got ", shape_text(grad_loss.sizes()));
  check_same_device(op, "lse", lse, "input", input);
  WARPWRIGHT_CHECK(lse.numel() == target.numel() && lse.scalar_type() == acc, op, "lse must hold ", target.numel(),
                   " elements of ", dtype_name(acc), ", got ", lse.numel(), " of ", dtype_name(lse.scalar_type()));
  const bool mean = reduction == Reduction::kMean;
  check_same_device(op, "valid", valid, "input", input);
  WARPWRIGHT_CHECK(!mean || (valid.numel() == 1 && valid.scalar_type() == ScalarType::Long), op,
                   "valid must hold 1 element of torch.int64, got ", valid.numel(), " of ",
                   dtype_name(valid.scalar_type()));

  Tensor grad_input = empty(sizes_of(input), input.scalar_type(), input);
  Tensor grad_loss_holder, input_holder, target_holder, grad_input_holder;
  const Tensor lse_row = torch::stable::contiguous(lse);
  CrossEntropyBackwardParams params{};
  params.grad_loss = rows_of(grad_loss, 0, grad_loss_holder);
  params.input = rows_of(classes_last(input), 1, input_holder);
  params.target = rows_of(target, 0, target_holder);
  params.grad_input = rows_of(classes_last(grad_input), 1, grad_input_holder);
  params.lse = lse_row.const_data_ptr();
  params.valid = mean ? static_cast<const int64_t*>(valid.const_data_ptr()) : nullptr;
  params.rows = target.numel();
  params.cols = input.size(class_dim(input));
  params.ignore_index = ignore_index;
  params.label_smoothing = label_smoothing;
  params.dtype = to_dtype(input.scalar_type());
  params.grad_loss_dtype = to_dtype(grad_loss.scalar_type());
  check_targets(op, params.target, params.rows, params.cols, ignore_index);
  if (params.rows > 0) {
    Launch launch(input);
    backend::cross_entropy_backward(params, launch.stream());
  }
  return grad_input;
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("cross_entropy", TORCH_BOX(&cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
}

}  // namespace warpwright
