// Bindings of the losses of single elements.

#include "kernels/pointwise_loss.h"

#include "bindings/loss.h"

namespace warpwright {
namespace {

// What a loss is computed from; tensors of one shape.
struct Elements {
  PointwiseLoss kind;
  Tensor input, target;
  OptionalTensor weight, pos_weight;
};

void check_elements(const char* op, const Elements& of) {
  check_float(op, "input", of.input);
  check_like(op, "target", of.target, "input", of.input);
  if (of.weight.has_value()) check_like(op, "weight", *of.weight, "input", of.input);
  if (of.pos_weight.has_value()) check_like(op, "pos_weight", *of.pos_weight, "input", of.input);
}

// All dimensions make one long row where every tensor is contiguous, else the last one makes a row.
int64_t row_ndim_of(const Elements& of, const OptionalTensor& grad) {
  bool contiguous = of.input.is_contiguous() && of.target.is_contiguous();
  for (const OptionalTensor* tensor : {&of.weight, &of.pos_weight, &grad}) {
    contiguous = contiguous && (!tensor->has_value() || (*tensor)->is_contiguous());
  }
  return contiguous ? of.input.dim() : (of.input.dim() > 0 ? 1 : 0);
}

struct Holders {
  Tensor input, target, weight, pos_weight, grad;
};

template <class Params>
void set_elements(Params& params, const Elements& of, int64_t row_ndim, Holders& holders) {
  params.kind = of.kind;
  params.input = rows_of(of.input, row_ndim, holders.input);
  params.target = rows_of(of.target, row_ndim, holders.target);
  params.weight = rows_of(of.weight, row_ndim, holders.weight);
  params.pos_weight = rows_of(of.pos_weight, row_ndim, holders.pos_weight);
  params.cols = 1;
  for (int64_t d = of.input.dim() - row_ndim; d < of.input.dim(); ++d) params.cols *= of.input.size(d);
  params.rows = params.cols == 0 ? 0 : of.input.numel() / params.cols;
  params.dtype = to_dtype(of.input.scalar_type());
}

// One over what the sum of the elements is divided by.
double factor_of(const char* op, const std::string& reduction, const Tensor& input) {
  if (reduction == "batchmean") {
    const int64_t batch = input.dim() > 0 ? input.size(0) : 1;
    return 1.0 / static_cast<double>(batch);  // Over no row the mean is NaN: nothing times infinity.
  }
  return to_reduction(op, reduction) == Reduction::kMean ? 1.0 / static_cast<double>(input.numel()) : 1.0;
}

Tensor forward(const char* op, const Elements& of, const std::string& reduction, bool float32_loss) {
  check_elements(op, of);
  const double factor = factor_of(op, reduction, of.input);
  const ScalarType acc = acc_dtype(of.input.scalar_type()), dtype = float32_loss ? acc : of.input.scalar_type();
  const bool reduced = reduction != "none";
  Tensor loss = empty(reduced ? std::vector<int64_t>{} : sizes_of(of.input), dtype, of.input);
  Holders holders;
  PointwiseLossParams params{};
  set_elements(params, of, row_ndim_of(of, std::nullopt), holders);
  const int64_t pieces = params.rows * loss_pieces(params.cols);
  Tensor sums = empty({reduced ? pieces : 0}, acc, of.input), divisor = empty({}, acc, of.input);
  params.output = reduced ? nullptr : loss.mutable_data_ptr();
  params.sums = reduced ? sums.mutable_data_ptr() : nullptr;
  params.output_dtype = to_dtype(dtype);
  Launch launch(of.input);
  if (pieces > 0) backend::pointwise_loss(params, launch.stream());
  if (!reduced) return loss;
  sum_losses({loss, sums, divisor}, Rows{}, {}, pieces, 0, 0, Reduction::kSum, launch.stream(), false, factor);
  return loss;
}

std::tuple<Tensor, Tensor> backward(const char* op, const Tensor& grad_loss, const Elements& of,
                                    const std::string& reduction, bool need_input, bool need_target) {
  check_elements(op, of);
  const bool reduced = reduction != "none";
  const std::vector<int64_t> sizes = sizes_of(of.input);
  check_grad_loss(op, grad_loss, of.input, sizes, reduced ? Reduction::kSum : Reduction::kNone);
  const auto output = [&](bool needed) {
    return needed ? empty(sizes, of.input.scalar_type(), of.input) : nothing(of.input.scalar_type(), of.input);
  };
  Tensor grad_input = output(need_input), grad_target = output(need_target);
  const double factor = factor_of(op, reduction, of.input);
  if (of.input.numel() == 0 || !(need_input || need_target)) return {grad_input, grad_target};
  Holders holders;
  PointwiseLossBackwardParams params{};
  const int64_t row_ndim = row_ndim_of(of, reduced ? OptionalTensor() : OptionalTensor(grad_loss));
  set_elements(params, of, row_ndim, holders);
  if (reduced) {
    params.grad_loss.data = const_cast<void*>(grad_loss.const_data_ptr());
    params.grad_loss.ndim = 1;
    params.grad_loss.col_stride = 0;
  } else {
    params.grad_loss = rows_of(grad_loss, row_ndim, holders.grad);
  }
  params.grad_input = need_input ? grad_input.mutable_data_ptr() : nullptr;
  params.grad_target = need_target ? grad_target.mutable_data_ptr() : nullptr;
  params.factor = factor;
  params.grad_loss_dtype = to_dtype(grad_loss.scalar_type());
  Launch launch(of.input);
  backend::pointwise_loss_backward(params, launch.stream());
  return {grad_input, grad_target};
}

Tensor binary_cross_entropy_with_logits(Tensor input, Tensor target, OptionalTensor weight, OptionalTensor pos_weight,
                                        std::string reduction, bool float32_loss) {
  const char* op = "binary_cross_entropy_with_logits";
  to_reduction(op, reduction);
  return forward(op, {PointwiseLoss::kBinaryCrossEntropy, input, target, weight, pos_weight}, reduction, float32_loss);
}

std::tuple<Tensor, Tensor> binary_cross_entropy_with_logits_backward(Tensor grad_loss, Tensor input, Tensor target,
                                                                     OptionalTensor weight, OptionalTensor pos_weight,
                                                                     std::string reduction, bool need_input,
                                                                     bool need_target) {
  const char* op = "binary_cross_entropy_with_logits_backward";
  to_reduction(op, reduction);
  return backward(op, grad_loss, {PointwiseLoss::kBinaryCrossEntropy, input, target, weight, pos_weight}, reduction,
                  need_input, need_target);
}

Elements kl_elements(const char* op, const Tensor& input, const Tensor& target, const std::string& reduction,
                     bool log_target) {
  check_kl_reduction(op, reduction);
  return {log_target ? PointwiseLoss::kKlDivLog : PointwiseLoss::kKlDiv, input, target, std::nullopt, std::nullopt};
}

Tensor kl_div(Tensor input, Tensor target, std::string reduction, bool log_target, bool float32_loss) {
  return forward("kl_div", kl_elements("kl_div", input, target, reduction, log_target), reduction, float32_loss);
}

std::tuple<Tensor, Tensor> kl_div_backward(Tensor grad_loss, Tensor input, Tensor target, std::string reduction,
                                           bool log_target, bool need_input, bool need_target) {
  const char* op = "kl_div_backward";
  const Elements of = kl_elements(op, input, target, reduction, log_target);
  return backward(op, grad_loss, of, reduction, need_input, need_target);
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("binary_cross_entropy_with_logits", TORCH_BOX(&binary_cross_entropy_with_logits));
  m.impl("binary_cross_entropy_with_logits_backward", TORCH_BOX(&binary_cross_entropy_with_logits_backward));
  m.impl("kl_div", TORCH_BOX(&kl_div));
  m.impl("kl_div_backward", TORCH_BOX(&kl_div_backward));
}

}  // namespace warpwright
