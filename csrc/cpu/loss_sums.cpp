// The sum or the mean of the losses of rows, in the two stages of kernels/loss.h, in double.

#include "cpu/loss.h"
#include "cpu/parallel.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// What a row adds to the divisor of the mean.
template <class A>
double weight_of(const LossSumsParams& p, int64_t row) {
  if (p.target.data == nullptr) return 1;
  const int64_t target = target_of(p.target, row);
  if (target == p.ignore_index) return 0;
  return p.weight == nullptr ? 1 : static_cast<double>(static_cast<const A*>(p.weight)[target]);
}

template <class A>
void sum_part(const LossSumsParams& p, int64_t index, int64_t partials) {
  double loss = 0, total = 0;
  for (int64_t row = p.rows * index / partials; row < p.rows * (index + 1) / partials; ++row) {
    if (!p.total_only) loss += static_cast<double>(static_cast<const A*>(p.row_loss)[row]);
    total += weight_of<A>(p, row);
  }
  static_cast<A*>(p.partial_loss)[index] = static_cast<A>(loss);
  static_cast<A*>(p.partial_total)[index] = static_cast<A>(total);
}

template <class A>
void sum_rows(const LossSumsParams& p) {
  const int64_t partials = loss_partials(p.rows);
  parallel_for(0, partials, row_grain(p.rows / partials), [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) sum_part<A>(p, index, partials);
  });
  double loss = 0, total = 0;
  for (int64_t index = 0; index < partials; ++index) {
    loss += static_cast<double>(static_cast<const A*>(p.partial_loss)[index]);
    total += static_cast<double>(static_cast<const A*>(p.partial_total)[index]);
  }
  *static_cast<A*>(p.total) = static_cast<A>(total);
  if (p.total_only) return;
  // Without a row that counts the mean is 0 / 0, NaN, as in PyTorch.
  if (p.reduction == Reduction::kMean) loss /= total;
  store_as<double>(p.loss_dtype, p.loss, 0, p.factor * loss);
}

}  // namespace

void loss_sums(const LossSumsParams& p) {
  if (p.dtype == DType::kFloat64) return sum_rows<double>(p);
  sum_rows<float>(p);
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(loss_sums, LossSumsParams)
