// The divergence of rows of logits from a teacher's on the CPU. Both rows are read for their maxima, for the sums of
// their exponentials, and for the loss and the gradient at once; they stay in the cache in between.

#include "kernels/distillation.h"

#include "cpu/loss.h"
#include "cpu/parallel.h"
#include "cpu/vec_math.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// The logarithm of the softmax of scale * x. The largest element is taken off first: exactly 0 is left of it, whether
// or not the compiler fuses the product.
template <class A>
struct Normaliser {
  A scale, max, log_sum;
  Vec<A> log_softmax(Vec<A> x) const { return (x - max) * scale - log_sum; }
};

template <class T>
Normaliser<acc_t<T>> normaliser_of(const T* x, int64_t cols, acc_t<T> scale) {
  using A = acc_t<T>;
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  Vec<A> highest = splat<A>(kLowest);
  for_each_vector<A>(cols, [&](int64_t i, auto n) { highest = vmax(load(x + i, n, kLowest), highest); });
  const A max = reduce_max<A>(highest);
  const A sum = sum_vectors<A>(cols, [&](int64_t i, auto n) { return vexp((load(x + i, n, kLowest) - max) * scale); });
  return {scale, max, vlog(splat<A>(sum))[0]};
}

// Lanes of the last vector past the end are zero.
template <class A>
Vec<A> inside(Vec<A> v, Whole) {
  return v;
}
template <class A>
Vec<A> inside(Vec<A> v, int64_t count) {
  for (int64_t lane = count; lane < kLanes<A>; ++lane) v[lane] = 0;
  return v;
}

template <class T>
void divergence_rows(const SoftmaxKlDivParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const A temperature = static_cast<A>(p.temperature), scale = 1 / temperature;
  Scratch<T> student_row(p.student.col_stride == 1 ? 0 : p.cols), teacher_row(p.teacher.col_stride == 1 ? 0 : p.cols);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = row_data(p.student, row, p.cols, student_row.data());
    const T* y = row_data(p.teacher, row, p.cols, teacher_row.data());
    const Normaliser<A> student = normaliser_of(x, p.cols, scale), teacher = normaliser_of(y, p.cols, scale);
    T* grad = p.grad.data == nullptr ? nullptr : static_cast<T*>(p.grad.data) + p.grad.offset(row);
    A factor = static_cast<A>(p.factor) * scale;
    if (p.grad_loss.data != nullptr) factor *= load_as<A>(p.grad_loss_dtype, p.grad_loss.data, p.grad_loss.offset(row));
    const A loss = sum_vectors<A>(p.cols, [&](int64_t i, auto n) {
      const Vec<A> log_q = student.log_softmax(load(x + i, n)), log_p = teacher.log_softmax(load(y + i, n));
      const Vec<A> probability = vexp(log_p), gap = vexp(log_q) - probability;
      if (grad != nullptr) store(grad + i, factor * gap, n);
      return inside<A>(probability * (log_p - log_q) + gap, n);
    });
    if (p.row_loss != nullptr) store_as<A>(p.row_loss_dtype, p.row_loss, row, loss);
  }
}

}  // namespace

void softmax_kl_div(const SoftmaxKlDivParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    parallel_for(0, p.rows, row_grain(p.cols),
                 [&](int64_t begin, int64_t end) { divergence_rows<decltype(tag)>(p, begin, end); });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(softmax_kl_div, SoftmaxKlDivParams)
