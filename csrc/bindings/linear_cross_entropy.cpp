// Bindings of the cross entropy of a linear layer's output.

#include "bindings/linear_loss.h"
#include "bindings/loss.h"

namespace warpwright {
namespace {

struct Options {
  int64_t ignore_index;
  double label_smoothing, z_loss, softcap;
};

struct Targets {
  Tensor indices;               // (rows), in one piece
  OptionalTensor class_weight;  // (classes), in what logits are added up in, in one piece

  Rows from(int64_t first) const {
    Rows rows;
    rows.data = static_cast<int64_t*>(const_cast<void*>(indices.const_data_ptr())) + first;
    rows.ndim = 1;
    rows.size[0] = indices.numel();
    rows.stride[0] = 1;
    return rows;
  }
};

// What is known of each row once its loss is: see CrossEntropyParams.
struct Statistics {
  Tensor lse;   // (2, rows): the maxima and the logarithms
  Tensor mass;  // (rows), or no elements: then it is 1

  static Statistics empty_ones(const ChunkedLinear& layer, const Targets& targets) {
    const ScalarType acc = acc_dtype(layer.input.scalar_type());
    return {empty({2, layer.rows()}, acc, layer.input),
            empty({targets.class_weight.has_value() ? layer.rows() : 0}, acc, layer.input)};
  }
};

Targets check_targets_of(const char* op, const ChunkedLinear& layer, const Tensor& input, const Tensor& target,
                         const OptionalTensor& class_weight, const Options& options) {
  check_same_device(op, "target", target, "input", input);
  WARPWRIGHT_CHECK(target.scalar_type() == ScalarType::Long, op, "target must be torch.int64, got ",
                   dtype_name(target.scalar_type()));
  std::vector<int64_t> rows = sizes_of(input);
  rows.pop_back();
  WARPWRIGHT_CHECK(sizes_of(target) == rows, op, "target must have shape ", shape_text(IntHeaderOnlyArrayRef(rows)),
                   ", got ", shape_text(target.sizes()));
  check_class_weight(op, "class_weight", class_weight, input, layer.classes());
  check_loss_options(op, options.label_smoothing, options.z_loss, options.softcap);
  const Targets targets{torch::stable::contiguous(target), weight_row(class_weight, input.scalar_type())};
  check_targets(op, targets.from(0), layer.rows(), layer.classes(), options.ignore_index);
  return targets;
}

CrossEntropySettings settings_of(const Tensor& logits, const Options& options) {
  CrossEntropySettings with{};
  with.rows = logits.size(0);
  with.cols = logits.size(1);
  with.ignore_index = options.ignore_index;
  with.label_smoothing = options.label_smoothing;
  with.z_loss = options.z_loss;
  with.softcap = options.softcap;
  with.dtype = to_dtype(logits.scalar_type());
  with.target_dtype = DType::kInt64;
  return with;
}

template <class T>
T* element(T* data, int64_t index, const Tensor& of) {
  using Bytes = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Bytes*>(data) + index * of.element_size();
}

void chunk_loss(const Targets& targets, const Options& options, const Tensor& logits, int64_t first, Tensor& row_loss,
                Statistics& of_rows) {
  Launch launch(logits);
  Tensor holder;
  CrossEntropyParams params{};
  params.with = settings_of(logits, options);
  params.input = rows_of(logits, 1, holder);
  params.target = targets.from(first);
  params.weight = data_or_null(targets.class_weight);
  params.row_loss = element(row_loss.mutable_data_ptr(), first, row_loss);
  params.max = element(of_rows.lse.mutable_data_ptr(), first, of_rows.lse);
  params.log_sum = element(params.max, targets.indices.numel(), of_rows.lse);
  if (params.weight != nullptr) params.mass = element(of_rows.mass.mutable_data_ptr(), first, of_rows.mass);
  params.row_loss_dtype = to_dtype(row_loss.scalar_type());
  backend::cross_entropy(params, launch.stream());
}

// Writes the gradient over the logits. `total` is what a mean was divided by, null for other reductions.
void chunk_grad(const Targets& targets, const Options& options, Tensor& logits, int64_t first, const Tensor& grad_loss,
                const Statistics& of_rows, const OptionalTensor& total) {
  Launch launch(logits);
  Tensor holder;
  CrossEntropyBackwardParams params{};
  params.with = settings_of(logits, options);
  params.grad_loss.data = const_cast<void*>(grad_loss.const_data_ptr());
  params.grad_loss.ndim = 1;
  if (grad_loss.dim() > 0) {
    params.grad_loss.data = element(params.grad_loss.data, first, grad_loss);
    params.grad_loss.stride[0] = 1;
  }
  logits.mutable_data_ptr();  // It is written to.
  params.input = params.grad_input = rows_of(logits, 1, holder);
  params.target = targets.from(first);
  params.weight = data_or_null(targets.class_weight);
  params.max = element(of_rows.lse.const_data_ptr(), first, of_rows.lse);
  params.log_sum = element(params.max, targets.indices.numel(), of_rows.lse);
  if (params.weight != nullptr) params.mass = element(of_rows.mass.const_data_ptr(), first, of_rows.mass);
  params.total = data_or_null(total);
  params.grad_loss_dtype = to_dtype(grad_loss.scalar_type());
  backend::cross_entropy_backward(params, launch.stream());
}

using Losses = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Losses linear_cross_entropy(Tensor input, Tensor weight, Tensor target, OptionalTensor bias,
                            OptionalTensor class_weight, int64_t ignore_index, std::string reduction_name,
                            double label_smoothing, double z_loss, double softcap, std::optional<int64_t> chunk_rows,
                            std::string precision, bool batch_invariant, bool float32_loss, bool need_input,
                            bool need_weight, bool need_bias) {
  const char* op = "linear_cross_entropy";
  const Options options{ignore_index, label_smoothing, z_loss, softcap};
  const ChunkedLinear layer = chunked_linear(op, input, weight, bias, chunk_rows, precision, batch_invariant);
  const Targets targets = check_targets_of(op, layer, input, target, class_weight, options);
  const Reduction reduction = to_reduction(op, reduction_name);
  const bool reduced = reduction != Reduction::kNone;
  RowLosses losses = empty_losses(sizes_of(target), reduction, float32_loss, input);
  Statistics of_rows = Statistics::empty_ones(layer, targets);
  const LinearNeeds needs{need_input && reduced, need_weight && reduced, need_bias && reduced};
  LinearGrads grads(layer, needs);
  const auto sum = [&](bool total_only) {
    Launch launch(input);
    sum_losses(losses, targets.from(0), targets.class_weight, layer.rows(), layer.classes(), ignore_index, reduction,
               launch.stream(), total_only);
  };
  Tensor one = empty({}, acc_dtype(input.scalar_type()), input);
  if (needs.any()) {
    torch::stable::fill_(one, 1.0);
    sum(/*total_only=*/true);
  }
  const OptionalTensor total = reduction == Reduction::kMean ? OptionalTensor(losses.total) : std::nullopt;
  for (int64_t first = 0; first < layer.rows(); first += layer.chunk) {
    Tensor logits = layer.logits(first);
    chunk_loss(targets, options, logits, first, losses.row_loss, of_rows);
    if (!needs.any()) continue;
    chunk_grad(targets, options, logits, first, one, of_rows, total);
    grads.add(logits, first);
  }
  if (reduced) sum(/*total_only=*/false);
  auto [grad_input, grad_weight, grad_bias] = grads.result(sizes_of(input));
  return {losses.loss, of_rows.lse, of_rows.mass, losses.total, grad_input, grad_weight, grad_bias};
}

// The logits once more: where the forward pass had nothing to scale the gradients by.
std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(
    Tensor grad_loss, Tensor input, Tensor weight, Tensor target, OptionalTensor bias, OptionalTensor class_weight,
    Tensor lse, Tensor mass, Tensor total, int64_t ignore_index, std::string reduction_name, double label_smoothing,
    double z_loss, double softcap, std::optional<int64_t> chunk_rows, std::string precision, bool batch_invariant,
    bool need_input, bool need_weight, bool need_bias) {
  const char* op = "linear_cross_entropy_backward";
  const Options options{ignore_index, label_smoothing, z_loss, softcap};
  const ChunkedLinear layer = chunked_linear(op, input, weight, bias, chunk_rows, precision, batch_invariant);
  const Targets targets = check_targets_of(op, layer, input, target, class_weight, options);
  const Reduction reduction = to_reduction(op, reduction_name);
  check_grad_loss(op, grad_loss, input, sizes_of(target), reduction);
  check_row_statistic(op, "lse", lse, input, 2 * layer.rows());
  check_row_statistic(op, "mass", mass, input, class_weight.has_value() ? layer.rows() : 0);
  check_total(op, total, input, reduction);
  const Tensor grad_row = torch::stable::contiguous(grad_loss);
  const Statistics of_rows{torch::stable::contiguous(lse), torch::stable::contiguous(mass)};
  const OptionalTensor divisor = reduction == Reduction::kMean ? OptionalTensor(total) : std::nullopt;
  LinearGrads grads(layer, {need_input, need_weight, need_bias});
  for (int64_t first = 0; first < layer.rows(); first += layer.chunk) {
    Tensor logits = layer.logits(first);
    chunk_grad(targets, options, logits, first, grad_row, of_rows, divisor);
    grads.add(logits, first);
  }
  return grads.result(sizes_of(input));
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&linear_cross_entropy));
  m.impl("linear_cross_entropy_backward", TORCH_BOX(&linear_cross_entropy_backward));
}

}  // namespace warpwright
