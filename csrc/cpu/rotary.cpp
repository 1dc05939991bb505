// Rotary embedding on the CPU: heads go to threads, pairs of one head to vectors.

#include "kernels/rotary.h"

#include "cpu/parallel.h"
#include "cpu/rotate.h"

WARPWRIGHT_ISA_BEGIN

namespace {

template <class T, class Table>
void rotate_rows(const RotaryParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const int64_t pairs = p.rotary_dim / 2;
  const A sign = p.inverse ? A(-1) : A(1);
  Scratch<T> gathered(p.head_dim);
  for (int64_t row = begin; row < end; ++row) {  // row = (batch, sequence, head)
    const int64_t head = row % p.heads, position = row / p.heads % p.sequence, b = row / p.heads / p.sequence;
    const T* x = static_cast<const T*>(p.input) + b * p.input_stride[0] + position * p.input_stride[1] +
                 head * p.input_stride[2];
    if (p.input_stride[3] != 1) {
      for (int64_t i = 0; i < p.head_dim; ++i) gathered.data()[i] = x[i * p.input_stride[3]];
      x = gathered.data();
    }
    const int64_t table = b * p.table_batch + position * p.table_row;
    const Table* cos = static_cast<const Table*>(p.cos) + table;
    const Table* sin = static_cast<const Table*>(p.sin) + table;
    T* y = static_cast<T*>(p.output) + row * p.head_dim;
    rotate_head(x, cos, sin, sign, pairs, p.head_dim, p.interleaved, y);
  }
}

}  // namespace

void rotary(const RotaryParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t rows = p.batch * p.sequence * p.heads;
    parallel_for(0, rows, row_grain(p.head_dim), [&](int64_t begin, int64_t end) {
      if (p.table_dtype == DType::kFloat32) return rotate_rows<T, float>(p, begin, end);
      return rotate_rows<T, T>(p, begin, end);
    });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(rotary, RotaryParams)
