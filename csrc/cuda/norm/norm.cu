// Layer norm (Ba, Kiros and Hinton, 2016) and RMS norm (Zhang and Sennrich, 2019), with an optional residual added
// first: fusing the addition saves one write and one read of the activation.
// Forward: one block a row. Backward: one block a group of rows, so that each block can keep the weight gradients of
// its own rows; a second kernel adds the groups in order.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/partials.cuh"
#include "cuda/tile/reduction.cuh"
#include "cuda/tile/row.cuh"
#include "kernels/norm.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

constexpr int kThreads = 256;

// machine code: 1, *>: SHFL; else: SHFL, 16-byte
template <class T, bool kCentred, bool kWarp, int kCount, int kPacks>
__global__ void __launch_bounds__(kWarp ? kNarrowBlockThreads : kMaxTeamThreads)
    norm_forward_kernel(const NormParams p) {
  using Tile = RowTile<T, kCount, kPacks>;
  using Place = RowPlace<kCount>;
  RowTeam<kWarp> team;
  const RowWalk<kCount, kPacks> walk(team, p.cols);
  const RowPointer<const T> weight{static_cast<const T*>(p.weight)}, bias{static_cast<const T*>(p.bias)};
  for (int64_t row = team.first_row(); row < p.rows; row += team.row_step()) {
    const auto input = row_pointer<T>(p.input, row), residual = row_pointer<T>(p.residual, row);
    Tile x;
    // The sum is rounded to T before it is normalised, so that the result is that of the unfused addition.
    const auto load = [&](const Place& at) {
      x.load(input, at);
      if (p.residual.data == nullptr) return;
      Tile other;
      other.load(residual, at);
      Tile::for_each([&](int k, int i) { x.set(k, i, x.get(k, i) + other.get(k, i)); });
    };
    const auto average = [&](const auto& term) {
      float total = 0.0f;
      for (int tile = 0; tile < walk.tiles; ++tile) {
        const Place at = walk.place(tile);
        if (!walk.resident()) load(at);
        Tile::for_each([&](int k, int i) { total += at.holds(k) ? term(x.get(k, i)) : 0.0f; });
      }
      return team.template reduce<Sum>(total) / static_cast<float>(p.cols);
    };

    if (walk.resident()) load(walk.place(0));
    const float mean = kCentred ? average([](float value) { return value; }) : 0.0f;
    // Of the differences: the mean of squares less the square of the mean loses every digit when the mean is large.
    const float variance = average([&](float value) { return (value - mean) * (value - mean); });
    const float rstd = 1.0f / sqrtf(variance + static_cast<float>(p.eps));
    if (team.leads()) {
      static_cast<float*>(p.rstd)[row] = rstd;
      if (kCentred) static_cast<float*>(p.mean)[row] = mean;
    }
    for (int tile = 0; tile < walk.tiles; ++tile) {
      const Place at = walk.place(tile);
      if (!walk.resident()) load(at);
      if (p.sum != nullptr) x.store({static_cast<T*>(p.sum) + row * p.cols}, at);
      Tile factor, term;
      if (p.weight != nullptr) factor.load(weight, at);
      if (p.bias != nullptr) term.load(bias, at);
      Tile::for_each([&](int k, int i) {
        float y = (x.get(k, i) - mean) * rstd;
        if (p.weight != nullptr) y *= factor.get(k, i);
        if (p.bias != nullptr) y += term.get(k, i);
        x.set(k, i, y);
      });
      x.store({static_cast<T*>(p.output) + row * p.cols}, at);
    }
  }
}

// machine code: SHFL
template <class T, bool kCentred>
__global__ void __launch_bounds__(kThreads, 4) norm_backward_kernel(const NormBackwardParams p) {
  const int64_t first = p.rows * blockIdx.x / gridDim.x;
  const int64_t last = p.rows * (blockIdx.x + 1) / gridDim.x;
  const T* weight = static_cast<const T*>(p.weight);
  // Each thread owns the same columns throughout, so no barrier is needed around its partial sums.
  float* weight_sums =
      p.weight_partials == nullptr ? nullptr : static_cast<float*>(p.weight_partials) + blockIdx.x * p.cols;
  float* bias_sums = p.bias_partials == nullptr ? nullptr : static_cast<float*>(p.bias_partials) + blockIdx.x * p.cols;
  for (int64_t col = threadIdx.x; col < p.cols; col += kThreads) {
    if (weight_sums != nullptr) weight_sums[col] = 0.0f;
    if (bias_sums != nullptr) bias_sums[col] = 0.0f;
  }

  for (int64_t row = first; row < last; ++row) {
    const T* grad = static_cast<const T*>(p.grad_output.data) + p.grad_output.offset(row);
    const T* x = static_cast<const T*>(p.sum.data) + p.sum.offset(row);
    const float mean = kCentred ? static_cast<const float*>(p.mean)[row] : 0.0f;
    const float rstd = static_cast<const float*>(p.rstd)[row];
    float dot = 0.0f, total = 0.0f;
    for (int64_t col = threadIdx.x; col < p.cols; col += kThreads) {
      const float dy = to_float(grad[col * p.grad_output.col_stride]);
      const float xhat = (to_float(x[col * p.sum.col_stride]) - mean) * rstd;
      if (weight_sums != nullptr) weight_sums[col] += dy * xhat;
      if (bias_sums != nullptr) bias_sums[col] += dy;
      const float g = weight == nullptr ? dy : dy * to_float(weight[col]);
      dot += g * xhat;
      total += g;
    }
    const float mean_dot = block_reduce<Sum, kThreads>(dot) / static_cast<float>(p.cols);
    const float mean_grad = kCentred ? block_reduce<Sum, kThreads>(total) / static_cast<float>(p.cols) : 0.0f;
    if (p.grad_input == nullptr) continue;
    const T* extra =
        p.grad_sum.data == nullptr ? nullptr : static_cast<const T*>(p.grad_sum.data) + p.grad_sum.offset(row);
    T* grad_input = static_cast<T*>(p.grad_input) + row * p.cols;
    for (int64_t col = threadIdx.x; col < p.cols; col += kThreads) {
      const float dy = to_float(grad[col * p.grad_output.col_stride]);
      const float xhat = (to_float(x[col * p.sum.col_stride]) - mean) * rstd;
      const float g = weight == nullptr ? dy : dy * to_float(weight[col]);
      float dx = (g - mean_grad - xhat * mean_dot) * rstd;
      if (extra != nullptr) dx += to_float(extra[col * p.grad_sum.col_stride]);
      grad_input[col] = from_float<T>(dx);
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void norm_forward(const NormParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool packs = rows_fit_packs<T>(params.input) && rows_fit_packs<T>(params.residual) &&
                       row_fits_packs(params.weight) && row_fits_packs(params.bias);
    visit_row_plan<T>(params.cols, packs, [&](const RowPlan& plan, auto v) {
      const LaunchConfig config = plan.config(params.rows, stream);
      if (params.mean == nullptr) {
        launch("rms_norm", norm_forward_kernel<T, false, v.kWarp, v.kCount, v.kPacks>, config, params);
      } else {
        launch("layer_norm", norm_forward_kernel<T, true, v.kWarp, v.kCount, v.kPacks>, config, params);
      }
    });
  });
}

void norm_backward(const NormBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t groups = norm_partials(params.rows);
    const LaunchConfig config{dim3(static_cast<unsigned>(groups)), dim3(kThreads), stream};
    if (groups > 0 && params.mean == nullptr) {
      launch("rms_norm_backward", norm_backward_kernel<T, false>, config, params);
    } else if (groups > 0) {
      launch("layer_norm_backward", norm_backward_kernel<T, true>, config, params);
    }
    if (params.grad_weight != nullptr) {
      sum_partials<T>(params.weight_partials, params.grad_weight, groups, params.cols, stream);
    }
    if (params.grad_bias != nullptr) {
      sum_partials<T>(params.bias_partials, params.grad_bias, groups, params.cols, stream);
    }
  });
}

}  // namespace warpwright::cuda
