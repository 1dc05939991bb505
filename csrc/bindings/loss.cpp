// Bindings of the loss family.

#include "bindings/loss.h"

namespace warpwright {

Reduction to_reduction(const char* op, const std::string& name) {
  if (name == "none") return Reduction::kNone;
  if (name == "mean") return Reduction::kMean;
  if (name == "sum") return Reduction::kSum;
  fail(op, "reduction must be one of none, mean, sum, got '", name, "'");
}

void check_kl_reduction(const char* op, const std::string& name) {
  const bool known = name == "none" || name == "mean" || name == "sum" || name == "batchmean";
  WARPWRIGHT_CHECK(known, op, "reduction must be one of none, mean, sum, batchmean, got '", name, "'");
}

Tensor classes_last(Tensor tensor) {
  for (int64_t d = 1; d + 1 < tensor.dim(); ++d) tensor = torch::stable::transpose(tensor, d, d + 1);
  return tensor;
}

std::vector<int64_t> row_sizes(const Tensor& input) {
  std::vector<int64_t> sizes = sizes_of(input);
  sizes.erase(sizes.begin() + class_dim(input));
  return sizes;
}

void check_classes(const char* op, const Tensor& input, const OptionalTensor& weight) {
  check_float(op, "input", input);
  WARPWRIGHT_CHECK(input.dim() >= 1, op, "input must have at least 1 dimension, got 0");
  const int64_t classes = input.size(class_dim(input));
  WARPWRIGHT_CHECK(classes >= 1, op, "input must have at least 1 class, got shape ", shape_text(input.sizes()));
  check_class_weight(op, "weight", weight, input, classes);
}

void check_class_weight(const char* op, const char* name, const OptionalTensor& weight, const Tensor& input,
                        int64_t classes) {
  if (!weight.has_value()) return;
  check_same_device(op, name, *weight, "input", input);
  const ScalarType dtype = input.scalar_type(), acc = acc_dtype(dtype);
  WARPWRIGHT_CHECK(weight->scalar_type() == dtype || weight->scalar_type() == acc, op, name, " must be ",
                   dtype_name(dtype), " or ", dtype_name(acc), ", got ", dtype_name(weight->scalar_type()));
  WARPWRIGHT_CHECK(weight->dim() == 1 && weight->size(0) == classes, op, name, " must have shape (", classes,
                   ",), got ", shape_text(weight->sizes()));
}

void check_class_indices(const char* op, const Tensor& input, const Tensor& target) {
  check_same_device(op, "target", target, "input", input);
  WARPWRIGHT_CHECK(target.scalar_type() == ScalarType::Long, op, "target must be torch.int64, got ",
                   dtype_name(target.scalar_type()));
  const std::vector<int64_t> expected = row_sizes(input);
  WARPWRIGHT_CHECK(sizes_of(target) == expected, op, "target must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(expected)), ", got ", shape_text(target.sizes()));
}

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

void check_grad_loss(const char* op, const Tensor& grad_loss, const Tensor& input, const std::vector<int64_t>& sizes,
                     Reduction reduction) {
  const ScalarType dtype = input.scalar_type(), acc = acc_dtype(dtype);
  check_same_device(op, "grad_loss", grad_loss, "input", input);
  WARPWRIGHT_CHECK(grad_loss.scalar_type() == dtype || grad_loss.scalar_type() == acc, op, "grad_loss must be ",
                   dtype_name(dtype), " or ", dtype_name(acc), ", got ", dtype_name(grad_loss.scalar_type()));
  const std::vector<int64_t> expected = reduction == Reduction::kNone ? sizes : std::vector<int64_t>{};
  WARPWRIGHT_CHECK(sizes_of(grad_loss) == expected, op, "grad_loss must have shape ",
                   shape_text(IntHeaderOnlyArrayRef(expected)), ", got ", shape_text(grad_loss.sizes()));
}

void check_row_statistic(const char* op, const char* name, const Tensor& tensor, const Tensor& input, int64_t rows) {
  const ScalarType acc = acc_dtype(input.scalar_type());
  check_same_device(op, name, tensor, "input", input);
  WARPWRIGHT_CHECK(tensor.numel() == rows && tensor.scalar_type() == acc, op, name, " must hold ", rows,
                   " elements of ", dtype_name(acc), ", got ", tensor.numel(), " of ",
                   dtype_name(tensor.scalar_type()));
}

void check_loss_options(const char* op, double label_smoothing, double z_loss, double softcap) {
  WARPWRIGHT_CHECK(label_smoothing >= 0 && label_smoothing <= 1, op, "label_smoothing must be between 0 and 1, got ",
                   label_smoothing);
  WARPWRIGHT_CHECK(z_loss >= 0, op, "z_loss must not be negative, got ", z_loss);
  WARPWRIGHT_CHECK(softcap >= 0, op, "softcap must not be negative, got ", softcap);
}

void check_total(const char* op, const Tensor& total, const Tensor& input, Reduction reduction) {
  const ScalarType acc = acc_dtype(input.scalar_type());
  check_same_device(op, "total", total, "input", input);
  WARPWRIGHT_CHECK(reduction != Reduction::kMean || (total.numel() == 1 && total.scalar_type() == acc), op,
                   "total must hold 1 element of ", dtype_name(acc), ", got ", total.numel(), " of ",
                   dtype_name(total.scalar_type()));
}

OptionalTensor weight_row(const OptionalTensor& weight, ScalarType dtype) {
  if (!weight.has_value()) return std::nullopt;
  return torch::stable::contiguous(torch::stable::to(*weight, acc_dtype(dtype)));
}

RowLosses empty_losses(const std::vector<int64_t>& sizes, Reduction reduction, bool float32_loss, const Tensor& input) {
  const ScalarType acc = acc_dtype(input.scalar_type()), dtype = float32_loss ? acc : input.scalar_type();
  if (reduction == Reduction::kNone) {
    const Tensor loss = empty(sizes, dtype, input);
    return {loss, loss, nothing(acc, input)};
  }
  return {empty({}, dtype, input), empty(sizes, acc, input), empty({}, acc, input)};
}

void sum_losses(const RowLosses& losses, const Rows& target, const OptionalTensor& weight, int64_t rows,
                int64_t classes, int64_t ignore_index, Reduction reduction, Stream stream, bool total_only,
                double factor) {
  const ScalarType acc = losses.total.scalar_type();
  Tensor loss = losses.loss, total = losses.total;
  Tensor partials = empty({2, loss_partials(rows)}, acc, total);
  LossSumsParams params{};
  params.row_loss = losses.row_loss.const_data_ptr();
  params.total_only = total_only;
  params.factor = factor;
  params.target = target;
  params.weight = data_or_null(weight);
  params.partial_loss = partials.mutable_data_ptr();
  params.partial_total = static_cast<char*>(params.partial_loss) + loss_partials(rows) * partials.element_size();
  params.loss = loss.mutable_data_ptr();
  params.total = total.mutable_data_ptr();
  params.rows = rows;
  params.classes = classes;
  params.ignore_index = ignore_index;
  params.reduction = reduction;
  params.dtype = to_dtype(acc);
  params.loss_dtype = to_dtype(loss.scalar_type());
  backend::loss_sums(params, stream);
}

namespace {

// ---- cross_entropy ----

struct Options {
  int64_t ignore_index;
  double label_smoothing, z_loss, softcap;
};

bool holds_probabilities(const Tensor& target) {
  const ScalarType dtype = target.scalar_type();
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

void check_arguments(const char* op, const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const Options& options) {
  check_classes(op, input, weight);
  if (holds_probabilities(target)) {
    const ScalarType dtype = input.scalar_type(), acc = acc_dtype(dtype);
    check_same_device(op, "target", target, "input", input);
    WARPWRIGHT_CHECK(target.scalar_type() == dtype || target.scalar_type() == acc, op, "target must be torch.int64, ",
                     dtype_name(dtype), " or ", dtype_name(acc), ", got ", dtype_name(target.scalar_type()));
    check_same_shape(op, "target", target, "input", input);
    WARPWRIGHT_CHECK(options.ignore_index < 0, op,
                     "ignore_index must be negative where target holds probabilities, got ", options.ignore_index);
  } else {
    check_class_indices(op, input, target);
  }
  check_loss_options(op, options.label_smoothing, options.z_loss, options.softcap);
}

CrossEntropySettings settings_of(const Tensor& input, const Tensor& target, const Options& options) {
  CrossEntropySettings with{};
  with.cols = input.size(class_dim(input));
  with.rows = input.numel() / with.cols;
  with.ignore_index = options.ignore_index;
  with.label_smoothing = options.label_smoothing;
  with.z_loss = options.z_loss;
  with.softcap = options.softcap;
  with.probabilities = holds_probabilities(target);
  with.dtype = to_dtype(input.scalar_type());
  with.target_dtype = with.probabilities ? to_dtype(target.scalar_type()) : DType::kInt64;
  return with;
}

Rows target_rows(const char* op, const Tensor& target, const CrossEntropySettings& with, Tensor& holder) {
  if (with.probabilities) return rows_of(classes_last(target), 1, holder);
  const Rows rows = rows_of(target, 0, holder);
  check_targets(op, rows, with.rows, with.cols, with.ignore_index);
  return rows;
}

// Those of lse: the maxima, then the logarithms.
std::vector<int64_t> statistic_sizes(std::vector<int64_t> rows) {
  rows.insert(rows.begin(), 2);
  return rows;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy(Tensor input, Tensor target, OptionalTensor weight,
                                                         int64_t ignore_index, std::string reduction_name,
                                                         double label_smoothing, double z_loss, double softcap,
                                                         bool float32_loss) {
  const char* op = "cross_entropy";
  const Options options{ignore_index, label_smoothing, z_loss, softcap};
  check_arguments(op, input, target, weight, options);
  const Reduction reduction = to_reduction(op, reduction_name);
  const ScalarType acc = acc_dtype(input.scalar_type());
  const std::vector<int64_t> sizes = row_sizes(input);

  Tensor input_holder, target_holder;
  CrossEntropyParams params{};
  params.with = settings_of(input, target, options);
  params.input = rows_of(classes_last(input), 1, input_holder);
  params.target = target_rows(op, target, params.with, target_holder);
  const OptionalTensor weights = weight_row(weight, acc);
  RowLosses losses = empty_losses(sizes, reduction, float32_loss, input);
  Tensor lse = empty(statistic_sizes(sizes), acc, input);
  const bool has_mass = params.with.probabilities || weight.has_value();
  Tensor mass = has_mass ? empty(sizes, acc, input) : nothing(acc, input);
  params.weight = data_or_null(weights);
  params.row_loss = losses.row_loss.mutable_data_ptr();
  params.max = lse.mutable_data_ptr();
  params.log_sum = static_cast<char*>(params.max) + params.with.rows * lse.element_size();
  params.mass = has_mass ? mass.mutable_data_ptr() : nullptr;
  params.row_loss_dtype = to_dtype(losses.row_loss.scalar_type());
  Launch launch(input);
  backend::cross_entropy(params, launch.stream());
  if (reduction != Reduction::kNone) {
    const bool alike = params.with.probabilities;
    sum_losses(losses, alike ? Rows{} : params.target, weights, params.with.rows, params.with.cols, ignore_index,
               reduction, launch.stream());
  }
  return {losses.loss, lse, mass, losses.total};
}

std::tuple<Tensor, Tensor> cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor target, OptionalTensor weight,
                                                  Tensor lse, Tensor mass, Tensor total, int64_t ignore_index,
                                                  std::string reduction_name, double label_smoothing, double z_loss,
                                                  double softcap, bool need_input, bool need_target) {
  const char* op = "cross_entropy_backward";
  const Options options{ignore_index, label_smoothing, z_loss, softcap};
  check_arguments(op, input, target, weight, options);
  const Reduction reduction = to_reduction(op, reduction_name);
  check_grad_loss(op, grad_loss, input, row_sizes(input), reduction);
  CrossEntropyBackwardParams params{};
  params.with = settings_of(input, target, options);
  check_row_statistic(op, "lse", lse, input, 2 * params.with.rows);
  const bool has_mass = params.with.probabilities || weight.has_value();
  check_row_statistic(op, "mass", mass, input, has_mass ? params.with.rows : 0);
  check_total(op, total, input, reduction);

  need_target = need_target && params.with.probabilities;
  const auto output = [&](bool needed, const Tensor& like) {
    return needed ? empty(sizes_of(like), like.scalar_type(), input) : nothing(like.scalar_type(), input);
  };
  const Tensor grad_input = output(need_input, input), grad_target = output(need_target, target);
  Tensor grad_loss_holder, input_holder, target_holder, grad_input_holder, grad_target_holder;
  params.target = target_rows(op, target, params.with, target_holder);
  if (params.with.rows == 0 || !(need_input || need_target)) return {grad_input, grad_target};
  const Tensor lse_row = torch::stable::contiguous(lse), mass_row = torch::stable::contiguous(mass);
  const OptionalTensor weights = weight_row(weight, input.scalar_type());
  params.grad_loss = rows_of(grad_loss, 0, grad_loss_holder);
  params.input = rows_of(classes_last(input), 1, input_holder);
  if (need_input) params.grad_input = rows_of(classes_last(grad_input), 1, grad_input_holder);
  if (need_target) params.grad_target = rows_of(classes_last(grad_target), 1, grad_target_holder);
  params.weight = data_or_null(weights);
  params.max = lse_row.const_data_ptr();
  params.log_sum = static_cast<const char*>(params.max) + params.with.rows * lse.element_size();
  params.mass = has_mass ? mass_row.const_data_ptr() : nullptr;
  params.total = reduction == Reduction::kMean ? total.const_data_ptr() : nullptr;
  params.grad_loss_dtype = to_dtype(grad_loss.scalar_type());
  Launch launch(input);
  backend::cross_entropy_backward(params, launch.stream());
  return {grad_input, grad_target};
}

// ---- nll_loss ----

std::tuple<Tensor, Tensor> nll_loss(Tensor input, Tensor target, OptionalTensor weight, int64_t ignore_index,
                                    std::string reduction_name, bool float32_loss) {
  const char* op = "nll_loss";
  check_classes(op, input, weight);
  check_class_indices(op, input, target);
  const Reduction reduction = to_reduction(op, reduction_name);
  Tensor input_holder, target_holder;
  NllLossParams params{};
  params.input = rows_of(classes_last(input), 1, input_holder);
  params.target = rows_of(target, 0, target_holder);
  params.rows = target.numel();
  params.cols = input.size(class_dim(input));
  params.ignore_index = ignore_index;
  check_targets(op, params.target, params.rows, params.cols, ignore_index);
  const OptionalTensor weights = weight_row(weight, input.scalar_type());
  RowLosses losses = empty_losses(sizes_of(target), reduction, float32_loss, input);
  params.weight = data_or_null(weights);
  params.row_loss = losses.row_loss.mutable_data_ptr();
  params.dtype = to_dtype(input.scalar_type());
  params.row_loss_dtype = to_dtype(losses.row_loss.scalar_type());
  Launch launch(input);
  backend::nll_loss(params, launch.stream());
  if (reduction != Reduction::kNone) {
    sum_losses(losses, params.target, weights, params.rows, params.cols, ignore_index, reduction, launch.stream());
  }
  return {losses.loss, losses.total};
}

Tensor nll_loss_backward(Tensor grad_loss, Tensor input, Tensor target, OptionalTensor weight, Tensor total,
                         int64_t ignore_index, std::string reduction_name) {
  const char* op = "nll_loss_backward";
  check_classes(op, input, weight);
  check_class_indices(op, input, target);
  const Reduction reduction = to_reduction(op, reduction_name);
  check_grad_loss(op, grad_loss, input, sizes_of(target), reduction);
  check_total(op, total, input, reduction);
  Tensor grad_input = empty(sizes_of(input), input.scalar_type(), input);
  torch::stable::zero_(grad_input);
  Tensor grad_loss_holder, target_holder, grad_input_holder;
  NllLossBackwardParams params{};
  params.grad_loss = rows_of(grad_loss, 0, grad_loss_holder);
  params.target = rows_of(target, 0, target_holder);
  params.rows = target.numel();
  params.cols = input.size(class_dim(input));
  params.ignore_index = ignore_index;
  check_targets(op, params.target, params.rows, params.cols, ignore_index);
  if (params.rows == 0) return grad_input;
  const OptionalTensor weights = weight_row(weight, input.scalar_type());
  grad_input.mutable_data_ptr();  // It is written to.
  params.grad_input = rows_of(classes_last(grad_input), 1, grad_input_holder);
  params.weight = data_or_null(weights);
  params.total = reduction == Reduction::kMean ? total.const_data_ptr() : nullptr;
  params.dtype = to_dtype(input.scalar_type());
  params.grad_loss_dtype = to_dtype(grad_loss.scalar_type());
  Launch launch(input);
  backend::nll_loss_backward(params, launch.stream());
  return grad_input;
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("nll_loss", TORCH_BOX(&nll_loss));
  m.impl("nll_loss_backward", TORCH_BOX(&nll_loss_backward));
  m.impl("cross_entropy", TORCH_BOX(&cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
}

}  // namespace warpwright
