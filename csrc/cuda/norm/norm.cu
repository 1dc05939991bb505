// Layer norm (Ba, Kiros and Hinton, 2016), RMS norm (Zhang and Sennrich, 2019) and division by the length, with an
// optional dropout and residual first: fusing the addition saves one write and one read of the activation.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/dropout_mask.cuh"
#include "cuda/tile/reduction.cuh"
#include "cuda/tile/row.cuh"
#include "kernels/norm.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// Packs of 16 bytes that a thread holds of a wide row: beside it stand what is added, the weights and the bias.
constexpr int kHeldPacks = 2;

// machine code: 1, 8>: SHFL; else: SHFL, 16-byte
template <class T, bool kCentred, bool kWarp, int kCount, int kPacks>
__global__ void __launch_bounds__(kWarp ? kNarrowBlockThreads : kMaxTeamThreads)
    norm_forward_kernel(const NormParams p) {
  using Tile = RowTile<T, kCount, kPacks>;
  using Place = RowPlace<kCount>;
  RowTeam<kWarp> team;
  const RowWalk<kCount, kPacks> walk(team, p.cols);
  // A warp takes rows that fit it.
  const bool resident = kWarp || walk.resident();
  const int tiles = kWarp ? 1 : walk.tiles;
  const RowPointer<const T> weight{static_cast<const T*>(p.weight)}, bias{static_cast<const T*>(p.bias)};
  const bool l2 = !kCentred && p.l2;
  for (int64_t row = team.first_row(); row < p.rows; row += team.row_step()) {
    const auto input = row_pointer<T>(p.input, row), residual = row_pointer<T>(p.residual, row);
    Tile x;
    // The sum is rounded to T before it is normalised, so that the result is that of the unfused addition.
    const auto load = [&](const Place& at) {
      x.load(input, at);
      if (p.sum == nullptr) return;
      const DropoutFactors<kCount, kPacks> kept(p.dropout, row, at);
      Tile other;
      if (p.residual.data != nullptr) other.load(residual, at);
      Tile::for_each([&](int k, int i) {
        const float dropped = x.get(k, i) * kept(k, i);
        x.set(k, i, p.residual.data != nullptr ? dropped + other.get(k, i) : dropped);
      });
    };
    const auto sum_of = [&](const auto& term) {
      float total = 0.0f;
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        const Place at = walk.place(tile);
        if (!resident) load(at);
        Tile::for_each([&](int k, int i) { total += at.holds(k) ? term(x.get(k, i)) : 0.0f; });
      }
      return team.template reduce<Sum>(total);
    };

    if (resident) load(walk.place(0));
    const float count = static_cast<float>(p.cols), eps = static_cast<float>(p.eps);
    const float mean = kCentred ? sum_of([](float value) { return value; }) / count : 0.0f;
    // Of the differences: the mean of squares less the square of the mean loses every digit when the mean is large.
    const float squares = sum_of([&](float value) { return (value - mean) * (value - mean); });
    const float length = sqrtf(squares);
    const float rstd = 1.0f / (l2 ? (length < eps ? eps : length) : sqrtf(squares / count + eps));
    if (team.leads()) {
      static_cast<float*>(p.rstd)[row] = l2 ? length : rstd;
      if (kCentred) static_cast<float*>(p.mean)[row] = mean;
    }
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      const Place at = walk.place(tile);
      if (!resident) load(at);
      if (p.sum != nullptr) x.store({static_cast<T*>(p.sum) + row * p.cols}, at);
      const float weight_offset = static_cast<float>(p.weight_offset);
      Tile factor, term;
      if (p.weight != nullptr) factor.load(weight, at);
      if (p.bias != nullptr) term.load(bias, at);
      Tile::for_each([&](int k, int i) {
        float y = (x.get(k, i) - mean) * rstd;
        if (p.weight != nullptr) y *= weight_offset + factor.get(k, i);
        if (p.bias != nullptr) y += term.get(k, i);
        x.set(k, i, y);
      });
      x.store({static_cast<T*>(p.output) + row * p.cols}, at);
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
    visit_row_plan<T, kHeldPacks>(params.cols, packs, [&](const RowPlan& plan, auto v) {
      const LaunchConfig config = plan.config(params.rows, stream);
      if (params.mean == nullptr) {
        launch("rms_norm", norm_forward_kernel<T, false, v.kWarp, v.kCount, v.kPacks>, config, params);
      } else {
        launch("layer_norm", norm_forward_kernel<T, true, v.kWarp, v.kCount, v.kPacks>, config, params);
      }
    });
  });
}

}  // namespace warpwright::cuda
