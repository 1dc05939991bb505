// AdamW on the CPU: all tensors of a call are cut into chunks, and the chunks go to threads.

#include "kernels/optim.h"

#include "cpu/parallel.h"
#include "cpu/vec.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// P: the parameter's and gradient's storage type; S: that of the two averages.
template <class P, class S>
void update_chunk(const AdamwParams& p, int32_t chunk) {
  using A = acc_t<P>;
  const int index = p.tensor_of(chunk);
  const AdamwTensor& t = p.tensors[index];
  const int64_t first = (chunk - p.first_chunk[index]) * kAdamwChunk;
  const int64_t count = t.numel - first < kAdamwChunk ? t.numel - first : kAdamwChunk;
  P* param = static_cast<P*>(t.param) + first;
  const P* grad = static_cast<const P*>(t.grad) + first;
  S* exp_avg = static_cast<S*>(t.exp_avg) + first;
  S* exp_avg_sq = static_cast<S*>(t.exp_avg_sq) + first;
  float* master = t.master == nullptr ? nullptr : t.master + first;

  // In double: 1 - beta^step loses most of its digits in float.
  const double step = *t.step;
  const A step_size = static_cast<A>(p.lr / (1 - ::pow(p.beta1, step)));
  const A correction = static_cast<A>(::sqrt(1 - ::pow(p.beta2, step)));
  const A decay = static_cast<A>(1 - p.lr * p.weight_decay), eps = static_cast<A>(p.eps);
  const A beta2 = static_cast<A>(p.beta2);
  const A rest1 = static_cast<A>(1 - p.beta1), rest2 = static_cast<A>(1 - p.beta2);
  const A scale = (p.grad_scale == nullptr ? A(1) : static_cast<A>(*p.grad_scale)) * (p.maximize ? A(-1) : A(1));

  for_each_vector<A>(count, [&](int64_t i, auto n) {
    const Vec<A> g = load(grad + i, n) / splat<A>(scale);
    Vec<A> m = load(exp_avg + i, n), v = load(exp_avg_sq + i, n), x;
    if constexpr (sizeof(P) < sizeof(float)) {
      x = master == nullptr ? load(param + i, n) : load(master + i, n);
    } else {
      x = load(param + i, n);
    }
    m += (g - m) * rest1;
    v = v * beta2 + g * g * rest2;
    x = x * decay - step_size * m / (vsqrt(v) / correction + eps);
    store(exp_avg + i, m, n);
    store(exp_avg_sq + i, v, n);
    if constexpr (sizeof(P) < sizeof(float)) {
      if (master != nullptr) store(master + i, x, n);
    }
    store(param + i, x, n);
  });
}

template <class P, class S>
void update(const AdamwParams& p) {
  parallel_for(0, p.first_chunk[p.count], 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) update_chunk<P, S>(p, static_cast<int32_t>(chunk));
  });
}

}  // namespace

void adamw(const AdamwParams& p) {
  if (p.found_inf != nullptr && *p.found_inf != 0) return;
  visit_float(p.dtype, [&](auto tag) {
    using P = decltype(tag);
    if (p.state_dtype == p.dtype) {
      update<P, P>(p);
    } else {
      update<P, acc_t<P>>(p);
    }
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(adamw, AdamwParams)
