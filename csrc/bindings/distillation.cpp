// Bindings of the losses that teach one model by another, behind the output layers of both.

#include "kernels/distillation.h"

#include <algorithm>

#include "bindings/linear_loss.h"
#include "bindings/loss.h"

namespace warpwright {
namespace {

// The divergence of a student's output from its teacher's.
struct Lesson {
  ChunkedLinear student, teacher;
  double temperature;
  double factor;  // One over what the sum of the rows is divided by.
  bool reduced;
};

Lesson check_lesson(const char* op, const Tensor& input, const Tensor& weight, const Tensor& teacher_input,
                    const Tensor& teacher_weight, const OptionalTensor& bias, const OptionalTensor& teacher_bias,
                    double temperature, const std::string& reduction, std::optional<int64_t> chunk_rows,
                    const std::string& precision, bool batch_invariant) {
  const ChunkedLinear student =
      chunked_linear(op, input, weight, bias, chunk_rows, precision, batch_invariant, /*layers=*/2);
  check_same_device(op, "teacher_input", teacher_input, "input", input);
  check_same_dtype(op, "teacher_input", teacher_input, "input", input);
  std::vector<int64_t> rows = sizes_of(input), teacher_rows = sizes_of(teacher_input);
  rows.pop_back();
  if (!teacher_rows.empty()) teacher_rows.pop_back();
  WARPWRIGHT_CHECK(teacher_input.dim() == input.dim() && teacher_rows == rows, op,
                   "teacher_input must have the shape of input but for its features, ", shape_text(input.sizes()),
                   ", got ", shape_text(teacher_input.sizes()));
  WARPWRIGHT_CHECK(teacher_weight.dim() == 2, op, "teacher_weight must have 2 dimensions, got ", teacher_weight.dim());
  check_same_device(op, "teacher_weight", teacher_weight, "input", input);
  check_same_dtype(op, "teacher_weight", teacher_weight, "input", input);
  const int64_t features = teacher_input.size(teacher_input.dim() - 1), classes = weight.size(0);
  WARPWRIGHT_CHECK(teacher_weight.size(1) == features, op, "teacher_weight has ", teacher_weight.size(1),
                   " input features, teacher_input has ", features);
  WARPWRIGHT_CHECK(teacher_weight.size(0) == classes, op, "teacher_weight has ", teacher_weight.size(0),
                   " classes, weight has ", classes);
  check_bias(op, "teacher_bias", teacher_bias, input, classes);
  WARPWRIGHT_CHECK(temperature > 0, op, "temperature must be positive, got ", temperature);
  check_kl_reduction(op, reduction);
  const auto count = static_cast<double>(student.rows());  // Over no row a mean is NaN: nothing times infinity.
  const double divisor =
      reduction == "batchmean" ? count : (reduction == "mean" ? count * static_cast<double>(classes) : 1);
  const ChunkedLinear teacher{as_matrix(teacher_input), teacher_weight, teacher_bias, student.chunk,
                              student.arithmetic};
  return {student, teacher, temperature, 1 / divisor, reduction != "none"};
}

// What is wanted of each row: its loss, the gradient over the student's logits (written where those lie), or both.
struct Wanted {
  const Tensor* row_loss = nullptr;  // (rows)
  bool grad = false;
  const Tensor* grad_loss = nullptr;  // One element or (rows), in one piece; null for ones.
};

void* element(const Tensor& of, int64_t index) {
  return static_cast<char*>(const_cast<void*>(of.const_data_ptr())) + index * of.element_size();
}

// The gradient is a difference of two probabilities, to which the errors of both products are added. On the CPU
// oneDNN adds up a float32 product in one chain: past so many terms it errs by more than half again as much as aten's
// blocks, which take their time.
constexpr int64_t kLongestChain = 256;

Tensor logits(const ChunkedLinear& layer, int64_t first) {
#if defined(WARPWRIGHT_BACKEND_CPU)
  const bool chained = layer.weight.scalar_type() == ScalarType::Float && layer.weight.size(1) > kLongestChain;
  if (chained && !layer.arithmetic.batch_invariant) {
    const Tensor rows = rows_from(layer.input, first, std::min(layer.chunk, layer.rows() - first));
    const Tensor product = empty({rows.size(0), layer.weight.size(0)}, ScalarType::Float, rows);
    product_into(product, rows, swapped(layer.weight));
    Epilogue epilogue;
    epilogue.bias = layer.bias;
    return layer.bias.has_value() ? finish_product(product, epilogue, ScalarType::Float, false).output : product;
  }
#endif
  return layer.logits(first);
}

// The student's logits of the rows from `first` on, or the gradient over them.
Tensor chunk(const Lesson& lesson, int64_t first, const Wanted& wanted) {
  Tensor student = logits(lesson.student, first);
  const Tensor teacher = logits(lesson.teacher, first);
  Tensor student_holder, teacher_holder;
  SoftmaxKlDivParams params{};
  student.mutable_data_ptr();  // It may be written to.
  params.student = rows_of(student, 1, student_holder);
  params.teacher = rows_of(teacher, 1, teacher_holder);
  if (wanted.grad) params.grad = params.student;
  if (wanted.grad_loss != nullptr) {
    const bool by_row = wanted.grad_loss->dim() > 0;
    params.grad_loss.data = element(*wanted.grad_loss, by_row ? first : 0);
    params.grad_loss.ndim = 1;
    params.grad_loss.stride[0] = by_row ? 1 : 0;
    params.grad_loss_dtype = to_dtype(wanted.grad_loss->scalar_type());
  }
  if (wanted.row_loss != nullptr) {
    params.row_loss = element(*wanted.row_loss, first);
    params.row_loss_dtype = to_dtype(wanted.row_loss->scalar_type());
  }
  params.rows = student.size(0);
  params.cols = student.size(1);
  params.temperature = lesson.temperature;
  params.factor = lesson.factor;
  params.dtype = to_dtype(student.scalar_type());
  Launch launch(student);
  backend::softmax_kl_div(params, launch.stream());
  return student;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_kl_div(Tensor input, Tensor weight, Tensor teacher_input,
                                                         Tensor teacher_weight, OptionalTensor bias,
                                                         OptionalTensor teacher_bias, double temperature,
                                                         std::string reduction, std::optional<int64_t> chunk_rows,
                                                         std::string precision, bool batch_invariant, bool float32_loss,
                                                         bool need_input, bool need_weight, bool need_bias) {
  const Lesson lesson = check_lesson("linear_kl_div", input, weight, teacher_input, teacher_weight, bias, teacher_bias,
                                     temperature, reduction, chunk_rows, precision, batch_invariant);
  std::vector<int64_t> sizes = sizes_of(input);
  sizes.pop_back();
  const bool reduced = lesson.reduced;
  const Reduction sum = reduced ? Reduction::kSum : Reduction::kNone;
  const RowLosses losses = empty_losses(sizes, sum, float32_loss, input);
  const LinearNeeds needs{need_input && reduced, need_weight && reduced, need_bias && reduced};
  LinearGrads grads(lesson.student, needs);
  Tensor row_loss = losses.row_loss;
  row_loss.mutable_data_ptr();  // It is written to.
  for (int64_t first = 0; first < lesson.student.rows(); first += lesson.student.chunk) {
    const Tensor grad = chunk(lesson, first, {&row_loss, needs.any(), nullptr});
    if (needs.any()) grads.add(grad, first);
  }
  if (reduced) {
    Launch launch(input);
    sum_losses(losses, Rows{}, {}, lesson.student.rows(), 0, 0, sum, launch.stream(), false, lesson.factor);
  }
  auto [grad_input, grad_weight, grad_bias] = grads.result(sizes_of(input));
  return {losses.loss, grad_input, grad_weight, grad_bias};
}

// The logits once more: where the forward pass had nothing to scale the gradients by.
std::tuple<Tensor, Tensor, Tensor> linear_kl_div_backward(
    Tensor grad_loss, Tensor input, Tensor weight, Tensor teacher_input, Tensor teacher_weight, OptionalTensor bias,
    OptionalTensor teacher_bias, double temperature, std::string reduction, std::optional<int64_t> chunk_rows,
    std::string precision, bool batch_invariant, bool need_input, bool need_weight, bool need_bias) {
  const char* op = "linear_kl_div_backward";
  const Lesson lesson = check_lesson(op, input, weight, teacher_input, teacher_weight, bias, teacher_bias, temperature,
                                     reduction, chunk_rows, precision, batch_invariant);
  std::vector<int64_t> sizes = sizes_of(input);
  sizes.pop_back();
  check_grad_loss(op, grad_loss, input, sizes, lesson.reduced ? Reduction::kSum : Reduction::kNone);
  const Tensor grad_row = torch::stable::contiguous(grad_loss);
  LinearGrads grads(lesson.student, {need_input, need_weight, need_bias});
  for (int64_t first = 0; first < lesson.student.rows(); first += lesson.student.chunk) {
    grads.add(chunk(lesson, first, {nullptr, true, &grad_row}), first);
  }
  return grads.result(sizes_of(input));
}

}  // namespace

WARPWRIGHT_LIBRARY_IMPL(m) {
  m.impl("linear_kl_div", TORCH_BOX(&linear_kl_div));
  m.impl("linear_kl_div_backward", TORCH_BOX(&linear_kl_div_backward));
}

}  // namespace warpwright
