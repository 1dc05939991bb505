// The second stage of every two-stage sum: rows of partial sums, added in order.

#pragma once

#include "cpu/parallel.h"
#include "cpu/vec.h"

WARPWRIGHT_ISA_BEGIN

// Rows that are added up before they join the total: closer than one after the other, and just as fixed.
inline constexpr int64_t kPartialsStep = 16;

// out[i] = the sum of partials[0..count)[i], over rows of `cols`.
template <class T>
void reduce_partials(const acc_t<T>* partials, int64_t count, int64_t cols, T* out) {
  using A = acc_t<T>;
  parallel_for(0, cols, kParallelGrain / (count < 1 ? 1 : count), [&](int64_t begin, int64_t end) {
    for_each_vector<A>(end - begin, [&](int64_t i, auto n) {
      Vec<A> total{};
      for (int64_t first = 0; first < count; first += kPartialsStep) {
        Vec<A> part{};
        const int64_t last = first + kPartialsStep < count ? first + kPartialsStep : count;
        for (int64_t row = first; row < last; ++row) part += load(partials + row * cols + begin + i, n);
        total += part;
      }
      store(out + begin + i, total, n);
    });
  });
}

WARPWRIGHT_ISA_END
