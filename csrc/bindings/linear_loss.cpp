// Bindings of the losses behind a linear layer. Rows are taken a chunk at a time: its logits, their loss, where it is
// wanted the gradient over the logits, and the products with it; then the chunk's memory is the next one's.

#include "kernels/linear_loss.h"

#include "bindings/gemm.h"
#include "bindings/loss.h"

namespace warpwright {
namespace {

// `count` rows of a matrix.
Tensor rows_from(Tensor matrix, int64_t first, int64_t count) { return torch::stable::narrow(matrix, 0, first, count); }

// ---- gradients that are added up over the chunks ----

struct Needs {
  bool input, weight, bias;
  bool any() const { return input || weight || bias; }
};

void add_to(Tensor& sums, const Tensor& addend) {
  Launch launch(sums);
  AccumulateParams params{};
  params.sums = sums.mutable_data_ptr();
  params.addend = addend.const_data_ptr();
  params.count = sums.numel();
  params.dtype = to_dtype(sums.scalar_type());
  if (params.count > 0) backend::accumulate(params, launch.stream());
}

// The gradients of a linear layer's operands, from those of its output a chunk of rows at a time. Sums over several
// chunks are kept in float32 (float64) and rounded once.
class LinearGrads {
 public:
  LinearGrads(const Tensor& input, const Tensor& weight, Needs needs, int64_t chunk, Arithmetic arithmetic)
      : input_(input), weight_(weight), needs_(needs), whole_(chunk >= input.size(0)), arithmetic_(arithmetic) {
    const ScalarType dtype = input.scalar_type();
    grad_input_ = needs.input ? empty(sizes_of(input), dtype, input) : nothing(dtype, input);
    grad_weight_ = nothing(dtype, input);
    grad_bias_ = nothing(dtype, input);
  }

  // `grad` (count, classes) belongs to the rows from `first` on.
  void add(const Tensor& grad, int64_t first) {
    const int64_t count = grad.size(0);
    if (needs_.input) {
      const Tensor part = gemm(grad, swapped(weight_), {}, arithmetic_).output;
      Tensor rows = rows_from(grad_input_, first, count);
      torch::stable::copy_(rows, part);
    }
    if (needs_.weight) {
      Epilogue sums;
      if (!whole_) sums.out_dtype = acc_dtype(grad.scalar_type());
      const Tensor rows = rows_from(input_, first, count);
      const Tensor part = gemm(swapped(grad), swapped(rows), sums, arithmetic_).output;
      if (first == 0) grad_weight_ = part;
      if (first != 0) add_to(grad_weight_, part);
    }
    if (needs_.bias) {
      const int64_t over_rows[] = {0};
      const Tensor part =
          torch::stable::sum(grad, IntHeaderOnlyArrayRef(over_rows, 1), false, acc_dtype(grad.scalar_type()));
      if (first == 0) grad_bias_ = part;
      if (first != 0) add_to(grad_bias_, part);
    }
  }

  std::tuple<Tensor, Tensor, Tensor> result() {
    const ScalarType dtype = input_.scalar_type();
    if (input_.size(0) == 0) {  // There was no chunk.
      if (needs_.weight) grad_weight_ = empty(sizes_of(weight_), dtype, input_);
      if (needs_.bias) grad_bias_ = empty({weight_.size(0)}, dtype, input_);
      torch::stable::zero_(grad_weight_);
      torch::stable::zero_(grad_bias_);
    }
    return {grad_input_, torch::stable::to(grad_weight_, dtype), torch::stable::to(grad_bias_, dtype)};
  }

 private:
  const Tensor input_, weight_;
  const Needs needs_;
  const bool whole_;
  const Arithmetic arithmetic_;
  Tensor grad_input_, grad_weight_, grad_bias_;
};

// ---- linear_cross_entropy ----

struct Layer {
  Tensor input;  // (rows, features)
  Tensor weight;
  OptionalTensor bias;
  Tensor target;  // (rows), in one piece
  int64_t chunk;
  Arithmetic arithmetic;

  int64_t rows() const { return input.size(0); }
  int64_t classes() const { return weight.size(0); }
  Tensor logits(int64_t first) const {
    const int64_t count = chunk < rows() - first ? chunk : rows() - first;
    Epilogue epilogue;
    epilogue.bias = bias;
    return gemm(rows_from(input, first, count), weight, epilogue, arithmetic).output;
  }
  Rows targets(int64_t first) const {
    Rows rows;
    rows.data = static_cast<int64_t*>(const_cast<void*>(target.const_data_ptr())) + first;
    rows.ndim = 1;
    rows.size[0] = this->rows();
    rows.stride[0] = 1;
    return rows;
  }
};

struct Options {
  int64_t ignore_index;
  double label_smoothing, z_loss, softcap;
};

Layer check_layer(const char* op, const Tensor& input, const Tensor& weight, const Tensor& target,
                  const OptionalTensor& bias, const Options& options, int64_t chunk_rows, const std::string& precision,
                  bool batch_invariant) {
  check_operands(op, input, "weight", weight);
  const int64_t classes = weight.size(0);
  WARPWRIGHT_CHECK(classes >= 1, op, "weight must have at least 1 class, got shape ", shape_text(weight.sizes()));
  check_bias(op, "bias", bias, input, classes);
  check_same_device(op, "target", target, "input", input);
  WARPWRIGHT_CHECK(target.scalar_type() == ScalarType::Long, op, "target must be torch.int64, got ",
                   dtype_name(target.scalar_type()));
  std::vector<int64_t> rows = sizes_of(input);
  rows.pop_back();
  WARPWRIGHT_CHECK(sizes_of(target) == rows, op, "target must have shape ", shape_text(IntHeaderOnlyArrayRef(rows)),
                   ", got ", shape_text(target.sizes()));
  check_loss_options(op, options.label_smoothing, options.z_loss, options.softcap);
  WARPWRIGHT_CHECK(chunk_rows >= 1, op, "chunk_rows must be positive, got ", chunk_rows);
  const Layer layer{as_matrix(input),
                    weight,
                    bias,
                    torch::stable::contiguous(target),
                    chunk_rows,
                    to_arithmetic(op, precision, batch_invariant)};
  check_targets(op, layer.targets(0), layer.rows(), classes, options.ignore_index);
  return layer;
}

CrossEntropySettings settings_of(const Layer& layer, const Tensor& logits, const Options& options) {
  CrossEntropySettings with{};
  with.rows = logits.size(0);
  with.cols = layer.classes();
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

void chunk_loss(const Layer& layer, const Options& options, const Tensor& logits, int64_t first, Tensor& row_loss,
                Tensor& lse) {
  Launch launch(logits);
  Tensor holder;
  CrossEntropyParams params{};
  params.with = settings_of(layer, logits, options);
  params.input = rows_of(logits, 1, holder);
  params.target = layer.targets(first);
  params.row_loss = element(row_loss.mutable_data_ptr(), first, row_loss);
  params.max = element(lse.mutable_data_ptr(), first, lse);
  params.log_sum = element(params.max, layer.rows(), lse);
  params.row_loss_dtype = to_dtype(row_loss.scalar_type());
  backend::cross_entropy(params, launch.stream());
}

// Writes the gradient over the logits. `total` is what a mean was divided by, null for other reductions.
void chunk_grad(const Layer& layer, const Options& options, Tensor& logits, int64_t first, const Tensor& grad_loss,
                const Tensor& lse, const OptionalTensor& total) {
  Launch launch(logits);
  Tensor holder;
  CrossEntropyBackwardParams params{};
  params.with = settings_of(layer, logits, options);
  params.grad_loss.data = const_cast<void*>(grad_loss.const_data_ptr());
  params.grad_loss.ndim = 1;
  if (grad_loss.dim() > 0) {
    params.grad_loss.data = element(params.grad_loss.data, first, grad_loss);
    params.grad_loss.stride[0] = 1;
  }
  logits.mutable_data_ptr();  // It is written to.
  params.input = params.grad_input = rows_of(logits, 1, holder);
  params.target = layer.targets(first);
  params.max = element(lse.const_data_ptr(), first, lse);
  params.log_sum = element(params.max, layer.rows(), lse);
  params.total = data_or_null(total);
  params.grad_loss_dtype = to_dtype(grad_loss.scalar_type());
  backend::cross_entropy_backward(params, launch.stream());
}

using Losses = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Losses linear_cross_entropy(Tensor input, Tensor weight, Tensor target, OptionalTensor bias, int64_t ignore_index,
                            std::string reduction_name, double label_smoothing, double z_loss, double softcap,
                            int64_t chunk_rows, std::string precision, bool batch_invariant, bool float32_loss,
                            bool need_input, bool need_weight, bool need_bias) {
  const char* op = "linear_cross_entropy";
  const Options options{ignore_index, label_smoothing, z_loss, softcap};
  const Layer layer = check_layer(op, input, weight, target, bias, options, chunk_rows, precision, batch_invariant);
  const Reduction reduction = to_reduction(op, reduction_name);
  const bool reduced = reduction != Reduction::kNone;
  const ScalarType acc = acc_dtype(input.scalar_type());
  RowLosses losses = empty_losses(sizes_of(target), reduction, float32_loss, input);
  Tensor lse = empty({2, layer.rows()}, acc, input);
  const Needs needs{need_input && reduced, need_weight && reduced, need_bias && reduced};
  LinearGrads grads(layer.input, weight, needs, chunk_rows, layer.arithmetic);
  Tensor one = empty({}, acc, input);
  if (needs.any()) {
    torch::stable::fill_(one, 1.0);
    Launch launch(input);
    sum_losses(losses, layer.targets(0), {}, layer.rows(), layer.classes(), ignore_index, reduction, launch.stream(),
               /*total_only=*/true);
  }
  const OptionalTensor total = reduction == Reduction::kMean ? OptionalTensor(losses.total) : std::nullopt;
  for (int64_t first = 0; first < layer.rows(); first += chunk_rows) {
    Tensor logits = layer.logits(first);
    chunk_loss(layer, options, logits, first, losses.row_loss, lse);
    if (!needs.any()) continue;
    chunk_grad(layer, options, logits, first, one, lse, total);
    grads.add(logits, first);
  }
  if (reduced) {
    Launch launch(input);
    sum_losses(losses, layer.targets(0), {}, layer.rows(), layer.classes(), ignore_index, reduction, launch.stream());
  }
  auto [grad_input, grad_weight, grad_bias] = grads.result();
  if (needs.input) grad_input = torch::stable::view(grad_input, sizes_of(input));
  return {losses.loss, lse, losses.total, grad_input, grad_weight, grad_bias};
}

// The logits once more: where the forward pass had nothing to scale the gradients by.
std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor weight,
                                                                 Tensor target, OptionalTensor bias, Tensor lse,
                                                                 Tensor total, int64_t ignore_index,
                                                                 std::string reduction_name, double label_smoothing,
                                                                 double z_loss, double softcap, int64_t chunk_rows,
                                                                 std::string precision, bool batch_invariant,
                                                                 bool need_input, bool need_weight, bool need_bias) {
  const char* op = "linear_cross_entropy_backward";
  const Options options{ignore_index, label_smoothing, z_loss, softcap};
  const Layer layer = check_layer(op, input, weight, target, bias, options, chunk_rows, precision, batch_invariant);
  const Reduction reduction = to_reduction(op, reduction_name);
  check_grad_loss(op, grad_loss, input, sizes_of(target), reduction);
  check_row_statistic(op, "lse", lse, input, 2 * layer.rows());
  check_total(op, total, input, reduction);
  const Tensor grad_row = torch::stable::contiguous(grad_loss), lse_rows = torch::stable::contiguous(lse);
  const OptionalTensor divisor = reduction == Reduction::kMean ? OptionalTensor(total) : std::nullopt;
  LinearGrads grads(layer.input, weight, {need_input, need_weight, need_bias}, chunk_rows, layer.arithmetic);
  for (int64_t first = 0; first < layer.rows(); first += chunk_rows) {
    Tensor logits = layer.logits(first);
    chunk_grad(layer, options, logits, first, grad_row, lse_rows, divisor);
    grads.add(logits, first);
  }
  auto [grad_input, grad_weight, grad_bias] = grads.result();
  if (need_input) grad_input = torch::stable::view(grad_input, sizes_of(input));
  return {grad_input, grad_weight, grad_bias};
}

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

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&linear_cross_entropy));
  m.impl("linear_cross_entropy_backward", TORCH_BOX(&linear_cross_entropy_backward));
  m.impl("linear_loss_backward", TORCH_BOX(&linear_loss_backward));
}

}  // namespace warpwright
