// The negative log-likelihood on the CPU: one element of each row is read, and one is written to a gradient of zeros.

#include "cpu/loss.h"
#include "cpu/parallel.h"

WARPWRIGHT_ISA_BEGIN

namespace {

template <class A>
A weight_of(const void* weight, int64_t target) {
  return weight == nullptr ? 1 : static_cast<const A*>(weight)[target];
}

// Rows are far apart, and each costs a line of memory.
constexpr int64_t kRowGrain = 1024;

}  // namespace

void nll_loss(const NllLossParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = acc_t<T>;
    parallel_for(0, p.rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t target = target_of(p.target, row);
        A loss = 0;
        if (target != p.ignore_index) {
          const T* input = static_cast<const T*>(p.input.data) + p.input.offset(row);
          loss = -weight_of<A>(p.weight, target) * to_acc(input[target * p.input.col_stride]);
        }
        store_as<A>(p.row_loss_dtype, p.row_loss, row, loss);
      }
    });
  });
}

void nll_loss_backward(const NllLossBackwardParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = acc_t<T>;
    parallel_for(0, p.rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t target = target_of(p.target, row);
        if (target == p.ignore_index) continue;
        A scale = load_as<A>(p.grad_loss_dtype, p.grad_loss.data, p.grad_loss.offset(row));
        if (p.total != nullptr) scale /= *static_cast<const A*>(p.total);
        T* grad_input = static_cast<T*>(p.grad_input.data) + p.grad_input.offset(row);
        grad_input[target * p.grad_input.col_stride] = from_acc<T>(-weight_of<A>(p.weight, target) * scale);
      }
    });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(nll_loss, NllLossParams)
WARPWRIGHT_CPU_LAUNCHER(nll_loss_backward, NllLossBackwardParams)
