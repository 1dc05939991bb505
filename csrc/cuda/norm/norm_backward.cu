// The gradients of the norms. With xhat = (x - mean) * rstd and g = grad_output * (weight_offset + weight):
//   grad_input  = rstd * (g - mean(g) - xhat * mean(g * xhat)) + grad_sum    (mean(g) for the layer norm only)
//   grad_weight = sum over rows of grad_output * xhat,   grad_bias = sum over rows of grad_output.
// A team takes every so many rows, and each of its threads the same columns of all of them: the sums of the weights'
// gradients stay in registers until a block has seen its rows, and a second kernel adds the blocks in order. How many
// blocks there are follows from the rows alone.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/dropout_mask.cuh"
#include "cuda/tile/partials.cuh"
#include "cuda/tile/reduction.cuh"
#include "cuda/tile/row.cuh"
#include "kernels/norm.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// Packs that a thread holds of a row: two of 16 bytes, as x, its gradient and up to two sums in float32 stand beside
// each other, or kSinglePacks of one element.
constexpr int kHeldPacks = 2;

// The sums of a thread's columns.
template <int kCount, int kPacks>
struct ColumnSums {
  float values[kPacks][kCount] = {};

  __device__ __forceinline__ void store(float* row, const RowPlace<kCount>& place) const {
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (place.holds(k)) row[place.col(k) + i] = values[k][i];
      }
    }
  }

  // Where each warp has rows of its own: the sums of the block's warps, added in their order. All threads must call.
  __device__ __forceinline__ void combine_warps() {
    __shared__ float all[kNarrowBlockThreads / kWarpSize][kPacks * kCount][kWarpSize];
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize, lane = static_cast<int>(threadIdx.x) % kWarpSize;
    __syncthreads();  // What was combined before has been read.
#pragma unroll
    for (int j = 0; j < kPacks * kCount; ++j) all[warp][j][lane] = values[j / kCount][j % kCount];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kPacks * kCount; ++j) {
      float total = 0.0f;
      for (int w = 0; w < kNarrowBlockThreads / kWarpSize; ++w) total += all[w][j][lane];
      values[j / kCount][j % kCount] = total;
    }
  }
};

// machine code: 1, 8>: SHFL; else: SHFL, 16-byte
template <class T, bool kCentred, bool kWarp, bool kResident, int kCount, int kPacks>
__global__ void __launch_bounds__(kWarp ? kNarrowBlockThreads : kMaxTeamThreads)
    norm_backward_kernel(const NormBackwardParams p) {
  static_assert(kResident || !kWarp, "a row that a warp takes fits its registers");
  using Tile = RowTile<T, kCount, kPacks>;
  using Place = RowPlace<kCount>;
  RowTeam<kWarp> team;
  const RowWalk<kCount, kPacks> walk(team, p.cols);
  const RowPointer<const T> weight{static_cast<const T*>(p.weight)};
  const float weight_offset = static_cast<float>(p.weight_offset), eps = static_cast<float>(p.eps);
  // One row of the partials for a block, or for a cluster.
  const int64_t own_partials = kWarp ? blockIdx.x : team.first_row();
  float* weight_partials = static_cast<float*>(p.weight_partials) + own_partials * p.cols;
  float* bias_partials = static_cast<float*>(p.bias_partials) + own_partials * p.cols;
  ColumnSums<kCount, kPacks> weight_sums, bias_sums;
  const int tiles = kResident ? 1 : walk.tiles;

  Tile factor;
  if (kResident && p.weight != nullptr) factor.load(weight, walk.place(0));
  for (int64_t row = team.first_row(); row < p.rows; row += team.row_step()) {
    const auto grad_row = row_pointer<T>(p.grad_output, row), x_row = row_pointer<T>(p.sum, row);
    const float mean = kCentred ? static_cast<const float*>(p.mean)[row] : 0.0f;
    const float statistic = static_cast<const float*>(p.rstd)[row];
    const bool shorter = p.l2 && statistic < eps;  // Then the divisor is a constant.
    const float rstd = p.l2 ? 1.0f / (shorter ? eps : statistic) : statistic;
    Tile grad, x;
    const auto load = [&](const Place& at) {
      grad.load(grad_row, at);
      x.load(x_row, at);
      if (!kResident && p.weight != nullptr) factor.load(weight, at);
    };
    const auto xhat = [&](int k, int i) { return (x.get(k, i) - mean) * rstd; };
    const auto g = [&](int k, int i) {
      return p.weight == nullptr ? grad.get(k, i) : grad.get(k, i) * (weight_offset + factor.get(k, i));
    };

    float dot = 0.0f, total = 0.0f;
    for (int tile = 0; tile < tiles; ++tile) {
      const Place at = walk.place(tile);
      load(at);
      Tile::for_each([&](int k, int i) {
        dot += g(k, i) * xhat(k, i);
        total += g(k, i);
        if (kResident) {
          weight_sums.values[k][i] += grad.get(k, i) * xhat(k, i);
          bias_sums.values[k][i] += grad.get(k, i);
        } else if (at.holds(k)) {
          const bool first = row == team.first_row();
          float* of_weight = weight_partials + at.col(k) + i;
          float* of_bias = bias_partials + at.col(k) + i;
          if (p.weight_partials != nullptr) *of_weight = (first ? 0.0f : *of_weight) + grad.get(k, i) * xhat(k, i);
          if (p.bias_partials != nullptr) *of_bias = (first ? 0.0f : *of_bias) + grad.get(k, i);
        }
      });
    }
    if (p.grad_input == nullptr && p.grad_residual == nullptr) continue;
    const float count = static_cast<float>(p.cols), whole_dot = team.template reduce<Sum>(dot);
    const float mean_dot = p.l2 ? (shorter ? 0.0f : whole_dot) : whole_dot / count;
    const float mean_grad = kCentred ? team.template reduce<Sum>(total) / count : 0.0f;
    for (int tile = 0; tile < tiles; ++tile) {
      const Place at = walk.place(tile);
      if (!kResident) load(at);
      Tile extra;
      if (p.grad_sum.data != nullptr) extra.load(row_pointer<T>(p.grad_sum, row), at);
      const DropoutFactors<kCount, kPacks> kept(p.dropout, row, at);
      Tile::for_each([&](int k, int i) {
        float dx = (g(k, i) - mean_grad - xhat(k, i) * mean_dot) * rstd;
        if (p.grad_sum.data != nullptr) dx += extra.get(k, i);
        grad.set(k, i, dx * kept(k, i));
        x.set(k, i, dx);
      });
      if (p.grad_input != nullptr) grad.store({static_cast<T*>(p.grad_input) + row * p.cols}, at);
      if (p.grad_residual != nullptr) x.store({static_cast<T*>(p.grad_residual) + row * p.cols}, at);
    }
  }

  if constexpr (kResident) {
    const auto finish = [&](auto& sums, float* partials) {
      if constexpr (kWarp) sums.combine_warps();
      if (!kWarp || threadIdx.x < kWarpSize) sums.store(partials, walk.place(0));
    };
    if (p.weight_partials != nullptr) finish(weight_sums, weight_partials);
    if (p.bias_partials != nullptr) finish(bias_sums, bias_partials);
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

namespace {

// Calls f(plan, variant, resident): as visit_row_plan, with what a thread holds here.
template <class T, class F>
void visit_backward_plan(int64_t cols, bool packs, const F& f) {
  const auto visit = [&](auto elements, auto held) {
    constexpr int kElements = decltype(elements)::value, kHeld = decltype(held)::value;
    const RowPlan plan = plan_rows(cols, kElements * kHeld);
    if (plan.threads == kWarpSize) return f(plan, RowVariant<true, kElements, kHeld>{}, std::true_type{});
    const bool resident = int64_t{plan.threads} * plan.cluster * kElements * kHeld >= cols;
    if (resident) return f(plan, RowVariant<false, kElements, kHeld>{}, std::true_type{});
    f(plan, RowVariant<false, kElements, kHeld>{}, std::false_type{});
  };
  if (packs && cols % kPackSize<T> == 0) {
    visit(std::integral_constant<int, kPackSize<T>>{}, std::integral_constant<int, kHeldPacks>{});
  } else {
    visit(std::integral_constant<int, 1>{}, std::integral_constant<int, kSinglePacks>{});
  }
}

}  // namespace

void norm_backward(const NormBackwardParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool packs = rows_fit_packs<T>(params.grad_output) && rows_fit_packs<T>(params.grad_sum) &&
                       rows_fit_packs<T>(params.sum) && row_fits_packs(params.weight);
    int64_t groups = 0;
    if (params.rows > 0) {
      visit_backward_plan<T>(params.cols, packs, [&](const RowPlan& plan, auto v, auto resident) {
        LaunchConfig config = plan.config(params.rows, stream);
        if (params.weight_partials != nullptr || params.bias_partials != nullptr) {
          groups = norm_partials(params.rows, plan.teams);
          config.grid = dim3(static_cast<unsigned>(groups * plan.cluster));
        }
        constexpr bool kResident = decltype(resident)::value;
        if (params.mean == nullptr) {
          launch("rms_norm_backward", norm_backward_kernel<T, false, v.kWarp, kResident, v.kCount, v.kPacks>, config,
                 params);
        } else {
          launch("layer_norm_backward", norm_backward_kernel<T, true, v.kWarp, kResident, v.kCount, v.kPacks>, config,
                 params);
        }
      });
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
