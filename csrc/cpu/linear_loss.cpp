// What the losses behind a linear layer need on the CPU beside products and losses: two passes over a gradient.

#include "kernels/linear_loss.h"

#include "cpu/loss.h"
#include "cpu/parallel.h"

WARPWRIGHT_ISA_BEGIN

void scale(const ScaleParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = acc_t<T>;
    const A by = load_as<A>(p.scale_dtype, p.scale, 0);
    parallel_for(0, p.count, kParallelGrain, [&](int64_t begin, int64_t end) {
      const T* input = static_cast<const T*>(p.input) + begin;
      T* output = static_cast<T*>(p.output) + begin;
      for_each_vector<A>(end - begin, [&](int64_t i, auto n) { store(output + i, by * load(input + i, n), n); });
    });
  });
}

void accumulate(const AccumulateParams& p) {
  const auto add = [&](auto tag) {
    using A = decltype(tag);
    parallel_for(0, p.count, kParallelGrain, [&](int64_t begin, int64_t end) {
      A* sums = static_cast<A*>(p.sums) + begin;
      const A* addend = static_cast<const A*>(p.addend) + begin;
      for_each_vector<A>(end - begin,
                         [&](int64_t i, auto n) { store(sums + i, load(sums + i, n) + load(addend + i, n), n); });
    });
  };
  if (p.dtype == DType::kFloat64) return add(double{});
  add(float{});
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(scale, ScaleParams)
WARPWRIGHT_CPU_LAUNCHER(accumulate, AccumulateParams)
