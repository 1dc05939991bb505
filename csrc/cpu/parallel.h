// Threads for CPU kernels. The threads are torch's own (bindings/parallel.cpp), so torch.set_num_threads rules here
// too; kernels see a plain function and no torch.

#pragma once

#include "cpu/isa.h"

namespace warpwright::cpu {

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);
void parallel_range(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context);

}  // namespace warpwright::cpu

WARPWRIGHT_ISA_BEGIN

// Elements under which a second thread costs more than it saves.
inline constexpr int64_t kParallelGrain = 16384;

// Calls f(begin, end) on parts of [begin, end) of at least `grain` items, on several threads.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  parallel_range(
      begin, end, grain < 1 ? 1 : grain,
      [](int64_t b, int64_t e, void* context) { (*static_cast<const F*>(context))(b, e); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// Rows so wide that one of them is `kParallelGrain` elements go one to a part.
inline int64_t row_grain(int64_t cols) { return cols < 1 ? kParallelGrain : (kParallelGrain + cols - 1) / cols; }

WARPWRIGHT_ISA_END
