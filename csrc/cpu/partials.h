// The second stage of every two-stage sum: rows of partial sums, added in order.

#pragma once

#include "cpu/parallel.h"
#include "cpu/vec.h"

WARPWRIGHT_ISA_BEGIN

// out[i] = partials[0][i] + partials[1][i] + ... over `count` rows of `cols`, in that order.
template <class T>
void reduce_partials(const acc_t<T>* partials, int64_t count, int64_t cols, T* out) {
  using A = acc_t<T>;
  parallel_for(0, cols, kParallelGrain / (count < 1 ? 1 : count), [&](int64_t begin, int64_t end) {
    for_each_vector<A>(end - begin, [&](int64_t i, auto n) {
      Vec<A> total{};
      for (int64_t row = 0; row < count; ++row) total += load(partials + row * cols + begin + i, n);
      store(out + begin + i, total, n);
    });
  });
}

WARPWRIGHT_ISA_END
