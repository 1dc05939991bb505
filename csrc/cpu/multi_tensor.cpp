// Norms and scaling of many tensors on the CPU: all of them are cut into chunks, and the chunks go to threads.

#include "kernels/multi_tensor.h"

#include "cpu/parallel.h"
#include "cpu/vec_math.h"

WARPWRIGHT_ISA_BEGIN

namespace {

Vec<float> magnitude(Vec<float> x) { return vabs(x); }
Vec<double> magnitude(Vec<double> x) { return x < 0.0 ? -x : x; }

// The larger of two magnitudes, or the one that is NaN.
template <class V>
V larger(V a, V b) {
  return (b > a) | (b != b) ? b : a;
}

template <class T>
void take_chunk(const ListParams& p, int32_t chunk) {
  using A = acc_t<T>;
  const int index = p.tensor_of(chunk);
  const int64_t first = (chunk - p.first_chunk[index]) * kListChunk, left = p.numel[index] - first;
  T* data = static_cast<T*>(p.data[index]) + first;
  const int64_t count = left < kListChunk ? left : kListChunk;
  // x - x is 0, unless x is infinite or NaN: then it is NaN, and stays so in the sum.
  Vec<A> odd{};
  A partial = 0;
  if (p.multiplier != nullptr) {
    const A multiplier = *static_cast<const A*>(p.multiplier);
    for_each_vector<A>(count, [&](int64_t i, auto n) {
      const Vec<A> x = load(data + i, n);
      odd += x - x;
      store(data + i, x * multiplier, n);
    });
  } else if (p.largest) {
    Vec<A> most{};
    for_each_vector<A>(count, [&](int64_t i, auto n) {
      const Vec<A> x = load(data + i, n);
      odd += x - x;
      most = larger(most, magnitude(x));
    });
    for (int64_t i = 0; i < kLanes<A>; ++i) partial = most[i] > partial || most[i] != most[i] ? most[i] : partial;
  } else {
    partial = sum_vectors<A>(count, [&](int64_t i, auto n) {
      const Vec<A> x = load(data + i, n);
      odd += x - x;
      return x * x;
    });
  }
  static_cast<A*>(p.partials)[chunk] = partial;
  p.flags[chunk] = reduce_add<A>(odd) == 0 ? 0.0f : 1.0f;
}

template <class A>
void take_result(const ListResultParams& p) {
  const A* partials = static_cast<const A*>(p.partials);
  double total = 0;
  bool found = false;
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
    found = found || p.flags[chunk] != 0;
    if (p.norm == nullptr) continue;
    const double partial = partials[chunk];
    if (p.largest) {
      total = partial > total || partial != partial ? partial : total;
    } else {
      total += partial;
    }
  }
  if (p.norm != nullptr) *static_cast<A*>(p.norm) = static_cast<A>(p.largest ? total : ::sqrt(total));
  if (p.found_inf != nullptr && (found || p.norm != nullptr)) *p.found_inf = found ? 1.0f : 0.0f;
}

}  // namespace

void tensor_list_pass(const ListParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    parallel_for(0, p.first_chunk[p.count], 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) take_chunk<decltype(tag)>(p, static_cast<int32_t>(chunk));
    });
  });
}

void tensor_list_result(const ListResultParams& p) {
  if (p.dtype == DType::kFloat64) return take_result<double>(p);
  take_result<float>(p);
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(tensor_list_pass, ListParams)
WARPWRIGHT_CPU_LAUNCHER(tensor_list_result, ListResultParams)
