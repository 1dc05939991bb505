// Cross entropy on the CPU. A row is read twice, for its maximum and for the sum of its exponentials, and stays in the
// cache between the two; rows go to threads. Rows whose classes are strided are taken through the cache a tile at a
// time, so that each line of memory is fetched once for the neighbouring rows that share it.

#include "kernels/loss.h"

#include "cpu/parallel.h"
#include "cpu/vec_math.h"

WARPWRIGHT_ISA_BEGIN

namespace {

constexpr int64_t kTileRows = 32;

// One element of a tensor whose storage type is known at run time.
template <class A>
A load_as(DType dtype, const void* data, int64_t index) {
  A value = 0;
  visit_float(dtype, [&](auto tag) { value = static_cast<A>(to_acc(static_cast<const decltype(tag)*>(data)[index])); });
  return value;
}
template <class A>
void store_as(DType dtype, void* data, int64_t index, A value) {
  visit_float(dtype, [&](auto tag) {
    using T = decltype(tag);
    static_cast<T*>(data)[index] = from_acc<T>(static_cast<acc_t<T>>(value));
  });
}

int64_t target_of(const Rows& target, int64_t row) {
  return static_cast<const int64_t*>(target.data)[target.offset(row)];
}

// Up to kTileRows rows as contiguous memory: in place where classes are neighbours, else copied to a tile.
template <class T>
class RowTile {
 public:
  RowTile(const Rows& rows, int64_t cols)
      : rows_(rows), cols_(cols), tile_(rows.col_stride == 1 ? 0 : kTileRows * cols) {}

  void move_to(int64_t first, int64_t count) {
    count_ = count;
    for (int64_t r = 0; r < count; ++r) start_[r] = static_cast<T*>(rows_.data) + rows_.offset(first + r);
  }
  T* row(int64_t r) const { return rows_.col_stride == 1 ? start_[r] : tile_.data() + r * cols_; }
  void read() const {
    if (rows_.col_stride == 1) return;
    for (int64_t c = 0; c < cols_; ++c) {
      for (int64_t r = 0; r < count_; ++r) tile_.data()[r * cols_ + c] = start_[r][c * rows_.col_stride];
    }
  }
  void write() const {
    if (rows_.col_stride == 1) return;
    for (int64_t c = 0; c < cols_; ++c) {
      for (int64_t r = 0; r < count_; ++r) start_[r][c * rows_.col_stride] = tile_.data()[r * cols_ + c];
    }
  }

 private:
  const Rows& rows_;
  const int64_t cols_;
  Scratch<T> tile_;
  T* start_[kTileRows];
  int64_t count_ = 0;
};

// With m = max(x) and l = log(sum(exp(x - m))): the loss of class t is l + (m - x[t]), which keeps its digits where
// m is large, and its mean over the classes is l + mean(m - x).
template <class T>
void forward_row(const CrossEntropyParams& p, int64_t row, const T* x) {
  using A = acc_t<T>;
  constexpr A kLowest = -std::numeric_limits<A>::infinity();
  A* lse = static_cast<A*>(p.lse) + row;
  const int64_t target = target_of(p.target, row);
  if (target == p.ignore_index) {
    *lse = 0;
    return store_as<A>(p.row_loss_dtype, p.row_loss, row, 0);
  }
  Vec<A> highest = splat<A>(kLowest);
  for_each_vector<A>(p.cols, [&](int64_t i, auto n) { highest = vmax(load(x + i, n, kLowest), highest); });
  const A max = reduce_max<A>(highest);
  Vec<A> total{};
  for_each_vector<A>(p.cols, [&](int64_t i, auto n) { total += vexp(load(x + i, n, kLowest) - max); });
  const A log_sum = vlog(splat<A>(reduce_add<A>(total)))[0];
  *lse = max + log_sum;
  A loss = log_sum + (max - to_acc(x[target]));
  if (p.label_smoothing > 0) {
    Vec<A> gaps{};
    for_each_vector<A>(p.cols, [&](int64_t i, auto n) { gaps += max - load(x + i, n, max); });
    const A smoothing = static_cast<A>(p.label_smoothing);
    loss = (1 - smoothing) * loss + smoothing * (log_sum + reduce_add<A>(gaps) / static_cast<A>(p.cols));
  }
  store_as<A>(p.row_loss_dtype, p.row_loss, row, loss);
}

template <class T>
void forward_rows(const CrossEntropyParams& p, int64_t begin, int64_t end) {
  RowTile<T> input(p.input, p.cols);
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int64_t count = end - first < kTileRows ? end - first : kTileRows;
    input.move_to(first, count);
    input.read();
    for (int64_t r = 0; r < count; ++r) forward_row<T>(p, first + r, input.row(r));
  }
}

// Partial `index`, in double: the sum of its rows' losses, and how many of them count.
template <class A>
void sum_rows(const CrossEntropyParams& p, int64_t index, int64_t partials) {
  double loss = 0;
  int64_t valid = 0;
  for (int64_t row = p.rows * index / partials; row < p.rows * (index + 1) / partials; ++row) {
    loss += static_cast<double>(static_cast<const A*>(p.row_loss)[row]);
    valid += target_of(p.target, row) != p.ignore_index;
  }
  static_cast<A*>(p.partial_loss)[index] = static_cast<A>(loss);
  p.partial_valid[index] = valid;
}

template <class A>
void reduce_rows(const CrossEntropyParams& p) {
  const int64_t partials = loss_partials(p.rows);
  parallel_for(0, partials, row_grain(p.rows / partials), [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) sum_rows<A>(p, index, partials);
  });
  double loss = 0;
  int64_t valid = 0;
  for (int64_t index = 0; index < partials; ++index) {
    loss += static_cast<double>(static_cast<const A*>(p.partial_loss)[index]);
    valid += p.partial_valid[index];
  }
  // Without a row that counts the mean is 0 / 0, NaN, as in PyTorch.
  if (p.reduction == Reduction::kMean) loss /= static_cast<double>(valid);
  store_as<double>(p.loss_dtype, p.loss, 0, loss);
  *p.valid = valid;
}

// grad_input = grad * (softmax(x) - label_smoothing / cols - (1 - label_smoothing) at the target).
template <class T>
void backward_row(const CrossEntropyBackwardParams& p, int64_t row, const T* x, T* out) {
  using A = acc_t<T>;
  const int64_t target = target_of(p.target, row);
  if (target == p.ignore_index) {
    for_each_vector<A>(p.cols, [&](int64_t i, auto n) { store(out + i, Vec<A>{}, n); });
    return;
  }
  A scale = load_as<A>(p.grad_loss_dtype, p.grad_loss.data, p.grad_loss.offset(row));
  if (p.valid != nullptr) scale /= static_cast<A>(*p.valid);
  const A lse = static_cast<const A*>(p.lse)[row];
  const A smoothing = static_cast<A>(p.label_smoothing), everywhere = smoothing / static_cast<A>(p.cols);
  const auto gradient = [&](Vec<A> v) { return vexp(v - lse) - everywhere; };
  const A at_target = gradient(splat<A>(to_acc(x[target])))[0] - (1 - smoothing);
  for_each_vector<A>(p.cols, [&](int64_t i, auto n) { store(out + i, scale * gradient(load(x + i, n)), n); });
  out[target] = from_acc<T>(scale * at_target);
}

template <class T>
void backward_rows(const CrossEntropyBackwardParams& p, int64_t begin, int64_t end) {
  RowTile<T> input(p.input, p.cols), grad_input(p.grad_input, p.cols);
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int64_t count = end - first < kTileRows ? end - first : kTileRows;
    input.move_to(first, count);
    grad_input.move_to(first, count);
    input.read();
    for (int64_t r = 0; r < count; ++r) backward_row<T>(p, first + r, input.row(r), grad_input.row(r));
    grad_input.write();
  }
}

}  // namespace

void cross_entropy(const CrossEntropyParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    parallel_for(0, p.rows, row_grain(p.cols), [&](int64_t b, int64_t e) { forward_rows<T>(p, b, e); });
    if (p.reduction != Reduction::kNone) reduce_rows<acc_t<T>>(p);
  });
}

void cross_entropy_backward(const CrossEntropyBackwardParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    parallel_for(0, p.rows, row_grain(p.cols), [&](int64_t b, int64_t e) { backward_rows<T>(p, b, e); });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(cross_entropy, CrossEntropyParams)
WARPWRIGHT_CPU_LAUNCHER(cross_entropy_backward, CrossEntropyBackwardParams)
