// 8-bit quantization: each group of a row, a block of it or all of it, stays in the registers of its team between its
// largest magnitude and its codes.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/quantize.cuh"
#include "cuda/tile/row.cuh"
#include "kernels/quantize.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

// machine code: 1, 8>: SHFL; else: SHFL, LDG.128
template <class T, class F, bool kWarp, int kCount, int kPacks>
__global__ void __launch_bounds__(kWarp ? kNarrowBlockThreads : kMaxTeamThreads)
    quantize_kernel(const QuantizeParams p) {
  using Tile = RowTile<T, kCount, kPacks>;
  RowTeam<kWarp> team;
  for (int64_t group = team.first_row(); group < p.rows * p.groups; group += team.row_step()) {
    const int64_t row = group / p.groups, first = (group - row * p.groups) * p.block;
    const RowWalk<kCount, kPacks> walk(team, p.cols - first < p.block ? p.cols - first : p.block);
    auto input = row_pointer<T>(p.input, row);
    input.data += first * input.stride;
    Tile x;
    float magnitude = 0.0f;
    for (int tile = 0; tile < walk.tiles; ++tile) {
      x.load(input, walk.place(tile));
      Tile::for_each([&](int k, int i) { magnitude = MaxMagnitude::combine(magnitude, fabsf(x.get(k, i))); });
    }
    const float scale = scale_of_magnitude(team.template reduce<MaxMagnitude>(magnitude), F::kMax);
    if (team.leads()) static_cast<float*>(p.scale)[group] = scale;
    uint8_t* output = static_cast<uint8_t*>(p.quantized) + row * p.cols + first;
    for (int tile = 0; tile < walk.tiles; ++tile) {
      const auto at = walk.place(tile);
      if (!walk.resident()) x.load(input, at);
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        if (!at.holds(k)) continue;
        Pack<uint8_t, kCount> codes;
#pragma unroll
        for (int i = 0; i < kCount; ++i) codes.values[i] = encode_float8<F>(x.get(k, i) / scale);
        store_whole(output + at.col(k), codes);
      }
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void quantize_fp8(const QuantizeParams& params, Stream stream) {
  visit_float(params.input_dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t count = params.block < params.cols ? params.block : params.cols;
    const bool packs = params.cols % kPackSize<T> == 0 && rows_fit_packs<T>(params.input);
    visit_row_plan<T>(count, packs, [&](const RowPlan& plan, auto variant) {
      using V = decltype(variant);
      visit_float8(params.quantized_dtype, [&](auto format) {
        launch("quantize_fp8", quantize_kernel<T, decltype(format), V::kWarp, V::kCount, V::kPacks>,
               plan.config(params.rows * params.groups, stream), params);
      });
    });
  });
}

}  // namespace warpwright::cuda
