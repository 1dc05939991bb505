// The divergence of rows of logits from a teacher's: one block a row. Maxima and sums of exponentials come from one
// read of both rows; a second one, which finds them in the L2 cache where the products have just left them, gives the
// loss and the gradient at once. A pass of its own for the gradient would read both rows a third time.

#include "cuda/loss/loss.cuh"
#include "cuda/loss/online_sum.cuh"
#include "cuda/tile/reduction.cuh"
#include "kernels/distillation.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// Whether a call's rows can be moved by 16-byte instructions.
struct DivergenceParams : SoftmaxKlDivParams {
  bool packs;
};

// The logarithm of the softmax of scale * x. The largest element is taken off first: exactly 0 is left of it, whether
// or not the compiler fuses the product.
struct Normaliser {
  float scale, max, log_sum;

  __device__ __forceinline__ Normaliser(const OnlineSum& mine, float scale) : scale(scale) {
    max = block_reduce<Max, kThreads>(mine.max);
    log_sum = logf(block_reduce<Sum, kThreads>(mine.rescaled(max, scale)));
  }
  __device__ __forceinline__ float log_softmax(float x) const { return (x - max) * scale - log_sum; }
};

// machine code: SHFL, MUFU.EX2, 16-byte
template <class T>
__global__ void __launch_bounds__(kThreads) softmax_kl_div_kernel(const DivergenceParams p) {
  constexpr int kCount = kPackSize<T>, kStep = kThreads * kCount;
  const float scale = 1.0f / static_cast<float>(p.temperature);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const T* student = static_cast<const T*>(p.student.data) + p.student.offset(row);
    const T* teacher = static_cast<const T*>(p.teacher.data) + p.teacher.offset(row);
    const int64_t student_step = p.student.col_stride, teacher_step = p.teacher.col_stride;
    OnlineSum student_sum, teacher_sum;
    Piece<T, kCount> x, y;
    for (int64_t col = threadIdx.x * kCount; col < p.cols; col += kStep) {
      x.load(student + col * student_step, student_step, p.packs, p.cols - col, -INFINITY);
      y.load(teacher + col * teacher_step, teacher_step, p.packs, p.cols - col, -INFINITY);
      student_sum.add(x.values, scale);
      teacher_sum.add(y.values, scale);
    }
    const Normaliser of_student(student_sum, scale), of_teacher(teacher_sum, scale);
    float factor = static_cast<float>(p.factor) * scale, loss = 0.0f;
    if (p.grad_loss.data != nullptr) factor *= load_as(p.grad_loss_dtype, p.grad_loss.data, p.grad_loss.offset(row));
    T* grad = static_cast<T*>(p.grad.data) + p.grad.offset(row);
    for (int64_t col = threadIdx.x * kCount; col < p.cols; col += kStep) {
      x.load(student + col * student_step, student_step, p.packs, p.cols - col);
      y.load(teacher + col * teacher_step, teacher_step, p.packs, p.cols - col);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float log_q = of_student.log_softmax(x.values[i]), log_p = of_teacher.log_softmax(y.values[i]);
        const float probability = expf(log_p), gap = expf(log_q) - probability;
        if (col + i < p.cols) loss += probability * (log_p - log_q) + gap;
        x.values[i] = factor * gap;
      }
      if (p.grad.data != nullptr) x.store(grad + col * p.grad.col_stride, p.grad.col_stride, p.packs, p.cols - col);
    }
    if (p.row_loss == nullptr) continue;
    loss = block_reduce<Sum, kThreads>(loss);
    if (threadIdx.x == 0) store_as(p.row_loss_dtype, p.row_loss, row, loss);
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launcher

void softmax_kl_div(const SoftmaxKlDivParams& params, Stream stream) {
  if (params.rows == 0) return;
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool grad = params.grad.data == nullptr || rows_fit_packs<T>(params.grad);
    const bool packs = grad && rows_fit_packs<T>(params.student) && rows_fit_packs<T>(params.teacher);
    const LaunchConfig config{grid_of_rows(params.rows), dim3(kThreads), stream};
    launch("softmax_kl_div", softmax_kl_div_kernel<T>, config, DivergenceParams{params, packs});
  });
}

}  // namespace warpwright::cuda
