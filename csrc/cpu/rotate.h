// Rotation of the pairs of one head by its position's angles.

#pragma once

#include <cmath>

#include "cpu/vec.h"

WARPWRIGHT_ISA_BEGIN

// a * c + b, rounded once where the processor can. Left to the compiler, one copy of a loop may round the first product
// of a * c - b * s and another the second: GCC enters its vector copy or its scalar one by how far apart the buffers
// happen to lie, and the same call would give other bits.
template <class A>
inline A multiply_add(A a, A c, A b) {
#ifdef __FMA__
  return std::fma(a, c, b);
#else
  return a * c + b;
#endif
}

// Halves lie `pairs` apart: both are vectors.
template <class X, class Table, class Y>
inline void rotate_halves(const X* x, const Table* cos, const Table* sin, acc_t<Y> sign, int64_t pairs, Y* y) {
  using A = acc_t<Y>;
  if constexpr (sizeof(acc_t<Table>) == sizeof(A)) {
    for_each_vector<A>(pairs, [&](int64_t i, auto n) {
      const Vec<A> a = load(x + i, n), b = load(x + pairs + i, n), c = load(cos + i, n), s = load(sin + i, n) * sign;
      store(y + i, a * c - b * s, n);
      store(y + pairs + i, b * c + a * s, n);
    });
  } else {  // float64 with a float32 table: lanes of two widths.
    for (int64_t i = 0; i < pairs; ++i) {
      const A a = to_acc(x[i]), b = to_acc(x[pairs + i]), c = to_acc(cos[i]), s = to_acc(sin[i]) * sign;
      y[i] = from_acc<Y>(multiply_add(a, c, -(b * s)));
      y[pairs + i] = from_acc<Y>(multiply_add(b, c, a * s));
    }
  }
}

template <class X, class Table, class Y>
inline void rotate_neighbours(const X* x, const Table* cos, const Table* sin, acc_t<Y> sign, int64_t pairs, Y* y) {
  using A = acc_t<Y>;
  for (int64_t i = 0; i < pairs; ++i) {
    const A a = to_acc(x[2 * i]), b = to_acc(x[2 * i + 1]), c = to_acc(cos[i]), s = to_acc(sin[i]) * sign;
    y[2 * i] = from_acc<Y>(multiply_add(a, c, -(b * s)));
    y[2 * i + 1] = from_acc<Y>(multiply_add(b, c, a * s));
  }
}

// One head of `head_dim` elements, of which 2 * pairs are rotated and the rest is copied. sign: 1, or -1 to rotate
// back.
template <class X, class Table, class Y>
inline void rotate_head(const X* x, const Table* cos, const Table* sin, acc_t<Y> sign, int64_t pairs, int64_t head_dim,
                        bool interleaved, Y* y) {
  if (interleaved) {
    rotate_neighbours(x, cos, sin, sign, pairs, y);
  } else {
    rotate_halves(x, cos, sin, sign, pairs, y);
  }
  for (int64_t i = 2 * pairs; i < head_dim; ++i) y[i] = from_acc<Y>(to_acc(x[i]));
}

WARPWRIGHT_ISA_END
