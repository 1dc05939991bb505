// Gated products on the CPU: the gate after both products, and the backward of both factors, each in one pass.

#include "kernels/gated.h"

#include "cpu/activation.h"
#include "cpu/partials.h"

WARPWRIGHT_ISA_BEGIN

namespace {

template <class T>
void gate_span(const GateParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  T* gate = static_cast<T*>(p.gate) + begin;
  const T* up = static_cast<const T*>(p.up) + begin;
  T* output = static_cast<T*>(p.output) + begin;
  const bool keep_value = p.keep && !needs_preact(p.activation);
  for_each_vector<A>(end - begin, [&](int64_t i, auto n) {
    const Vec<A> value = activate<A>(p.activation, load(gate + i, n));
    if (keep_value) store(gate + i, value, n);
    store(output + i, value * load(up + i, n), n);
  });
}

// The rows that a thread gathers where they are strided.
template <class T>
struct RowScratch {
  explicit RowScratch(int64_t cols) : grad(cols), gate(cols), up(cols) {}
  Scratch<T> grad, gate, up;
};

template <class T>
void backward_row(const GatedBackwardParams& p, int64_t row, const RowScratch<T>& scratch, acc_t<T>* gate_sums,
                  acc_t<T>* up_sums) {
  using A = acc_t<T>;
  const T* grad = row_data(p.grad, row, p.cols, scratch.grad.data());
  const T* gate = row_data(p.gate, row, p.cols, scratch.gate.data());
  const T* up = p.up.data == nullptr ? nullptr : row_data(p.up, row, p.cols, scratch.up.data());
  const auto output = [&](void* data, int64_t stride) {
    return data == nullptr ? nullptr : static_cast<T*>(data) + row * stride;
  };
  T* grad_gate = output(p.grad_gate, p.grad_row);
  T* grad_up = output(p.grad_up, p.grad_row);
  T* product = output(p.product, p.cols);
  const bool before = needs_preact(p.activation);
  for_each_vector<A>(p.cols, [&](int64_t i, auto n) {
    const Vec<A> dy = load(grad + i, n), x = load(gate + i, n);
    const Vec<A> value = before ? activate<A>(p.activation, x) : x;
    const Vec<A> factor = up == nullptr ? splat(A(1)) : load(up + i, n);
    const Vec<A> of_gate = dy * factor * activation_grad<A>(p.activation, x), of_up = dy * value;
    if (grad_gate != nullptr) store(grad_gate + i, of_gate, n);
    if (grad_up != nullptr) store(grad_up + i, of_up, n);
    if (product != nullptr) store(product + i, value * factor, n);
    if (gate_sums != nullptr) store(gate_sums + i, load(gate_sums + i, n) + of_gate, n);
    if (up_sums != nullptr) store(up_sums + i, load(up_sums + i, n) + of_up, n);
  });
}

// Block b sums its rows into row b of the partials.
template <class T>
void backward_blocks(const GatedBackwardParams& p) {
  using A = acc_t<T>;
  const int64_t blocks = gated_partials(p.rows), rows_a_block = blocks == 0 ? 1 : p.rows / blocks;
  parallel_for(0, blocks, row_grain(p.cols * rows_a_block), [&](int64_t first, int64_t last) {
    const RowScratch<T> scratch(p.cols);
    for (int64_t block = first; block < last; ++block) {
      const auto sums_of = [&](void* partials) {
        A* sums = partials == nullptr ? nullptr : static_cast<A*>(partials) + block * p.cols;
        for (int64_t i = 0; sums != nullptr && i < p.cols; ++i) sums[i] = 0;
        return sums;
      };
      A *gate_sums = sums_of(p.gate_partials), *up_sums = sums_of(p.up_partials);
      for (int64_t row = p.rows * block / blocks; row < p.rows * (block + 1) / blocks; ++row) {
        backward_row<T>(p, row, scratch, gate_sums, up_sums);
      }
    }
  });
}

}  // namespace

void gate(const GateParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    parallel_for(0, p.count, kParallelGrain, [&](int64_t b, int64_t e) { gate_span<decltype(tag)>(p, b, e); });
  });
}

void gated_backward(const GatedBackwardParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    backward_blocks<T>(p);
    const auto reduce = [&](const void* partials, void* out) {
      if (out == nullptr) return;
      const auto* rows = static_cast<const acc_t<T>*>(partials);
      reduce_partials<T>(rows, gated_partials(p.rows), p.cols, static_cast<T*>(out));
    };
    reduce(p.gate_partials, p.grad_gate_bias);
    reduce(p.up_partials, p.grad_up_bias);
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(gate, GateParams)
WARPWRIGHT_CPU_LAUNCHER(gated_backward, GatedBackwardParams)
