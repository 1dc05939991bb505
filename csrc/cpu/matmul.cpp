// A matrix product whose rows do not depend on each other: `batch_invariant` on the CPU. oneDNN and BLAS choose their
// kernels by the number of rows, and so the order in which a sum is added up; here that is the same for every row.
//
// B's columns are packed kColumns at a time, kDepth steps of K, in the type that is computed in; kRows rows of A are
// multiplied with such a panel in registers. A sum is taken in order, in parts of kDepth.

#include "kernels/matmul.h"

#include "cpu/parallel.h"
#include "cpu/vec.h"

WARPWRIGHT_ISA_BEGIN

namespace {

constexpr int kRows = 4, kVectors = 2;
constexpr int64_t kDepth = 256, kRowsOfPart = 64;
template <class A>
constexpr int64_t kColumns = kVectors * kLanes<A>;

// B[col0 + j][k0 + i] as panel[i][j], zeros past the last column.
template <class T>
void pack(const GemmParams& p, const T* b, int64_t col0, int64_t k0, int64_t depth, acc_t<T>* panel) {
  constexpr int64_t kWidth = kColumns<acc_t<T>>;
  for (int64_t j = 0; j < kWidth; ++j) {
    const bool inside = col0 + j < p.n;
    const T* column = b + (inside ? col0 + j : 0) * p.b_row + k0 * p.b_col;
    for (int64_t i = 0; i < depth; ++i) panel[i * kWidth + j] = inside ? to_acc(column[i * p.b_col]) : 0;
  }
}

// sums[r] += A[row0 + r][k0 + i] * panel[i], for all i in order. Rows past the last one repeat it.
template <class T>
void multiply(const GemmParams& p, const T* a, int64_t row0, int64_t k0, int64_t depth, const acc_t<T>* panel,
              acc_t<T>* sums) {
  using A = acc_t<T>;
  const T* rows[kRows];
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = row0 + r < p.m ? row0 + r : p.m - 1;
    rows[r] = a + row * p.a_row + k0 * p.a_col;
  }
  Vec<A> part[kRows][kVectors]{};
  for (int64_t i = 0; i < depth; ++i) {
    const A* step = panel + i * kColumns<A>;
    for (int v = 0; v < kVectors; ++v) {
      const Vec<A> column = load(step + v * kLanes<A>);
      for (int r = 0; r < kRows; ++r) part[r][v] += to_acc(rows[r][i * p.a_col]) * column;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      A* at = sums + r * kColumns<A> + v * kLanes<A>;
      store(at, load(at) + part[r][v]);
    }
  }
}

// Rows [first, last) of the columns from col0 on, of one matrix.
template <class T>
void panel_of_output(const GemmParams& p, const T* a, const T* b, acc_t<T>* output, int64_t first, int64_t last,
                     int64_t col0, acc_t<T>* panel, acc_t<T>* sums) {
  using A = acc_t<T>;
  const int64_t groups = (last - first + kRows - 1) / kRows, width = kColumns<A>;
  for (int64_t i = 0; i < groups * kRows * width; ++i) sums[i] = 0;
  for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
    const int64_t depth = p.k - k0 < kDepth ? p.k - k0 : kDepth;
    pack<T>(p, b, col0, k0, depth, panel);
    for (int64_t g = 0; g < groups; ++g) {
      multiply<T>(p, a, first + g * kRows, k0, depth, panel, sums + g * kRows * width);
    }
  }
  const int64_t columns = p.n - col0 < width ? p.n - col0 : width;
  for (int64_t row = first; row < last; ++row) {
    for (int64_t j = 0; j < columns; ++j) output[row * p.n + col0 + j] = sums[(row - first) * width + j];
  }
}

template <class T>
void gemm_parts(const GemmParams& p) {
  using A = acc_t<T>;
  const int64_t across = (p.n + kColumns<A> - 1) / kColumns<A>, down = (p.m + kRowsOfPart - 1) / kRowsOfPart;
  parallel_for(0, p.matrices() * across * down, 1, [&](int64_t begin, int64_t end) {
    Scratch<A> panel(kDepth * kColumns<A>), sums(kRowsOfPart * kColumns<A>);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t index = part / (across * down), row0 = part / across % down * kRowsOfPart;
      const int64_t last = row0 + kRowsOfPart < p.m ? row0 + kRowsOfPart : p.m;
      panel_of_output<T>(p, static_cast<const T*>(p.a) + batch_offset(p, p.a_batch, index),
                         static_cast<const T*>(p.b) + batch_offset(p, p.b_batch, index),
                         static_cast<A*>(p.output) + index * p.m * p.n, row0, last, part % across * kColumns<A>,
                         panel.data(), sums.data());
    }
  });
}

}  // namespace

void gemm_fixed(const GemmParams& p) {
  visit_float(p.dtype, [&](auto tag) { gemm_parts<decltype(tag)>(p); });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(gemm_fixed, GemmParams)
