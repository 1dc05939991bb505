// QK norm with rotary embedding on the CPU: a head is normalised and rotated while it lies in the first-level cache.
// Heads go to threads; weight gradients go through the fixed partial sums of kernels/qk_norm.h.

#include "kernels/qk_norm.h"

#include "cpu/partials.h"
#include "cpu/rotate.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// A block has at least so many heads, where there are as many: its sums are written, read and added up once more.
constexpr int64_t kBlockHeads = 64;

int64_t heads_of(const QkNormParams& p, const QkNormSide& side) { return p.batch * p.sequence * side.heads; }

// Where one head lies: row = (batch, sequence, head).
struct Head {
  int64_t batch, position, head;

  Head(const QkNormParams& p, const QkNormSide& side, int64_t row)
      : batch(row / side.heads / p.sequence), position(row / side.heads % p.sequence), head(row % side.heads) {}

  // Its elements as contiguous memory: in place, or gathered into `scratch`.
  template <class T>
  const T* data(const void* tensor, const int64_t* stride, int64_t head_dim, T* scratch) const {
    const T* x = static_cast<const T*>(tensor) + batch * stride[0] + position * stride[1] + head * stride[2];
    if (stride[3] == 1) return x;
    for (int64_t i = 0; i < head_dim; ++i) scratch[i] = x[i * stride[3]];
    return scratch;
  }
  template <class Table>
  const Table* table(const QkNormParams& p, const void* angles) const {
    return static_cast<const Table*>(angles) + batch * p.table_batch + position * p.table_row;
  }
};

template <class T, class Table>
void forward_heads(const QkNormParams& p, const QkNormSide& side, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  Scratch<T> gathered(p.head_dim);
  Scratch<A> normal(p.head_dim);
  const T* weight = static_cast<const T*>(side.weight);
  const A weight_offset = A(p.weight_offset);
  for (int64_t row = begin; row < end; ++row) {
    const Head at(p, side, row);
    const T* x = at.data(side.x, side.x_stride, p.head_dim, gathered.data());
    const A squares = sum_vectors<A>(p.head_dim, [&](int64_t i, auto n) {
      const Vec<A> v = load(x + i, n);
      return v * v;
    });
    const A rstd = A(1) / std::sqrt(squares / A(p.head_dim) + A(p.eps));
    static_cast<A*>(side.rstd)[row] = rstd;
    for_each_vector<A>(p.head_dim, [&](int64_t i, auto n) {
      Vec<A> y = load(x + i, n) * rstd;
      if (weight != nullptr) y *= load(weight + i, n) + weight_offset;
      store(normal.data() + i, y, n);
    });
    rotate_head(normal.data(), at.table<Table>(p, p.cos), at.table<Table>(p, p.sin), A(1), p.rotary_dim / 2, p.head_dim,
                p.interleaved, static_cast<T*>(side.output) + row * p.head_dim);
  }
}

// With dz the gradient rotated back, xhat = x * rstd and g = dz * (weight_offset + weight):
//   grad_x = rstd * (g - xhat * mean(g * xhat)),   grad_weight = sum over heads of dz * xhat.
template <class T, class Table>
void backward_heads(const QkNormParams& p, const QkNormSide& side, int64_t begin, int64_t end, acc_t<T>* weight_sums) {
  using A = acc_t<T>;
  Scratch<T> gathered_x(p.head_dim), gathered_grad(p.head_dim);
  Scratch<A> dz(p.head_dim);
  const T* weight = static_cast<const T*>(side.weight);
  const A weight_offset = A(p.weight_offset);
  for (int64_t row = begin; row < end; ++row) {
    const Head at(p, side, row);
    const T* x = at.data(side.x, side.x_stride, p.head_dim, gathered_x.data());
    rotate_head(at.data(side.grad, side.grad_stride, p.head_dim, gathered_grad.data()), at.table<Table>(p, p.cos),
                at.table<Table>(p, p.sin), A(-1), p.rotary_dim / 2, p.head_dim, p.interleaved, dz.data());
    const A rstd = static_cast<const A*>(side.rstd)[row];
    Vec<A> dot{};
    for_each_vector<A>(p.head_dim, [&](int64_t i, auto n) {
      Vec<A> g = load(dz.data() + i, n);
      const Vec<A> xhat = load(x + i, n) * rstd;
      if (weight_sums != nullptr) store(weight_sums + i, load(weight_sums + i, n) + g * xhat, n);
      if (weight != nullptr) g *= load(weight + i, n) + weight_offset;
      store(dz.data() + i, g, n);
      dot += g * xhat;
    });
    if (side.output == nullptr) continue;
    const A mean_dot = reduce_add<A>(dot) / A(p.head_dim);
    T* out = static_cast<T*>(side.output) + row * p.head_dim;
    for_each_vector<A>(p.head_dim, [&](int64_t i, auto n) {
      const Vec<A> xhat = load(x + i, n) * rstd;
      store(out + i, (load(dz.data() + i, n) - xhat * mean_dot) * rstd, n);
    });
  }
}

// Calls f(side, value of T, value of Table) for queries and keys.
template <class F>
void visit_sides(const QkNormParams& p, const F& f) {
  visit_float(p.dtype, [&](auto tag) {
    for (const QkNormSide& side : p.sides) {
      if (p.table_dtype == DType::kFloat32) {
        f(side, tag, float{});
      } else {
        f(side, tag, tag);
      }
    }
  });
}

}  // namespace

void qk_norm_forward(const QkNormParams& p) {
  visit_sides(p, [&](const QkNormSide& side, auto tag, auto table) {
    parallel_for(0, heads_of(p, side), row_grain(p.head_dim), [&](int64_t begin, int64_t end) {
      forward_heads<decltype(tag), decltype(table)>(p, side, begin, end);
    });
  });
}

void qk_norm_backward(const QkNormParams& p) {
  visit_sides(p, [&](const QkNormSide& side, auto tag, auto table) {
    using T = decltype(tag);
    using A = acc_t<T>;
    const int64_t heads = heads_of(p, side), blocks = qk_norm_partials((heads + kBlockHeads - 1) / kBlockHeads);
    const int64_t grain = row_grain(p.head_dim * (heads / (blocks < 1 ? 1 : blocks)));
    parallel_for(0, blocks, grain, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        A* sums = side.partials == nullptr ? nullptr : static_cast<A*>(side.partials) + block * p.head_dim;
        for (int64_t i = 0; sums != nullptr && i < p.head_dim; ++i) sums[i] = 0;
        backward_heads<T, decltype(table)>(p, side, heads * block / blocks, heads * (block + 1) / blocks, sums);
      }
    });
    if (side.grad_weight == nullptr) return;
    reduce_partials<T>(static_cast<const A*>(side.partials), blocks, p.head_dim, static_cast<T*>(side.grad_weight));
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(qk_norm_forward, QkNormParams)
WARPWRIGHT_CPU_LAUNCHER(qk_norm_backward, QkNormParams)
