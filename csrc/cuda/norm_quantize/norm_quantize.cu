// Norms with an 8-bit result: the row stays in registers from the input to the codes, where it fits them.

#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/quantize.cuh"
#include "cuda/tile/reduction.cuh"
#include "cuda/tile/row.cuh"
#include "kernels/norm_quantize.h"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

__device__ __forceinline__ uint8_t encode(float x, DType dtype) {
  if (dtype == DType::kInt8) return encode_int8(x);
  return dtype == DType::kFloat8E4M3 ? encode_float8<E4M3>(x) : encode_float8<E5M2>(x);
}

// Columns of one warp lie side by side, so that a block of the row has all its elements in one warp: neighbouring lanes
// of one pack, or where a pack is one element, whole packs that follow each other.
template <int kCount, int kPacks, bool kWarp>
struct WarpWalk {
  static constexpr int64_t kSpan = int64_t{kWarpSize} * kCount * kPacks;  // Columns of a warp.
  int64_t cols, team_span, first;
  int tiles;

  __device__ __forceinline__ WarpWalk(const RowTeam<kWarp>& team, int64_t cols) : cols(cols) {
    team_span = team.size() / kWarpSize * kSpan;
    first = team.rank() / kWarpSize * kSpan + team.rank() % kWarpSize * kCount;
    tiles = static_cast<int>((cols + team_span - 1) / team_span);
  }
  __device__ __forceinline__ RowPlace<kCount> place(int tile) const {
    return {cols, tile * team_span + first, int64_t{kWarpSize} * kCount};
  }
};

// The largest magnitude of each pack's block, in every lane that holds a part of it.
template <int kCount, int kPacks>
__device__ __forceinline__ void reduce_blocks(float (&magnitudes)[kPacks], int block) {
  const int lanes = block / kCount < kWarpSize ? block / kCount : kWarpSize;
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      magnitudes[k] = MaxMagnitude::combine(magnitudes[k], __shfl_xor_sync(kFullMask, magnitudes[k], offset));
    }
  }
  if constexpr (kCount == 1) {
    // A block of 64 is two packs, one of 128 is four.
#pragma unroll
    for (int packs = 1; packs < 4; packs *= 2) {
      if (block < 2 * packs * kWarpSize) break;
#pragma unroll
      for (int k = 0; k < kPacks; k += 2 * packs) {
        float both = magnitudes[k];
        both = MaxMagnitude::combine(both, magnitudes[k + packs]);
#pragma unroll
        for (int j = 0; j < 2 * packs; ++j) magnitudes[k + j] = both;
      }
    }
  }
}

// machine code: 1, 8>: SHFL; else: SHFL, LDG.128
template <class T, bool kWarp, int kCount, int kPacks>
__global__ void __launch_bounds__(kWarp ? kNarrowBlockThreads : kMaxTeamThreads)
    norm_quantize_kernel(const NormQuantizeParams p) {
  using Tile = RowTile<T, kCount, kPacks>;
  using Place = RowPlace<kCount>;
  RowTeam<kWarp> team;
  const WarpWalk<kCount, kPacks, kWarp> walk(team, p.cols);
  const bool resident = walk.tiles <= 1;
  const RowPointer<const T> weight{static_cast<const T*>(p.weight)}, bias{static_cast<const T*>(p.bias)};
  const float weight_offset = static_cast<float>(p.weight_offset), count = static_cast<float>(p.cols);
  const float largest = p.quantized_dtype == DType::kInt8         ? Int8::kMax
                        : p.quantized_dtype == DType::kFloat8E4M3 ? E4M3::kMax
                                                                  : E5M2::kMax;
  for (int64_t row = team.first_row(); row < p.rows; row += team.row_step()) {
    const auto input = row_pointer<T>(p.input, row), residual = row_pointer<T>(p.residual, row);
    Tile x;
    const auto load = [&](const Place& at) {
      x.load(input, at);
      if (p.residual.data == nullptr) return;
      Tile other;
      other.load(residual, at);
      Tile::for_each([&](int k, int i) { x.set(k, i, x.get(k, i) + other.get(k, i)); });
    };
    const auto sum_of = [&](const auto& term) {
      float total = 0.0f;
      for (int tile = 0; tile < walk.tiles; ++tile) {
        const Place at = walk.place(tile);
        if (!resident) load(at);
        Tile::for_each([&](int k, int i) { total += at.holds(k) ? term(x.get(k, i)) : 0.0f; });
      }
      return team.template reduce<Sum>(total);
    };
    if (resident) load(walk.place(0));
    const float mean = p.centred ? sum_of([](float value) { return value; }) / count : 0.0f;
    const float squares = sum_of([&](float value) { return (value - mean) * (value - mean); });
    const float rstd = 1.0f / sqrtf(squares / count + static_cast<float>(p.eps));

    Tile factor, term;
    const auto normal = [&](int k, int i) {
      float value = (x.get(k, i) - mean) * rstd;
      if (p.weight != nullptr) value *= weight_offset + factor.get(k, i);
      if (p.bias != nullptr) value += term.get(k, i);
      return value;
    };
    // The row's part, and of each pack the largest magnitude; it is cheaper to compute the norm twice than to keep it.
    float magnitudes[kPacks];
    const auto prepare = [&](const Place& at) {
      if (!resident) load(at);
      if (p.weight != nullptr) factor.load(weight, at);
      if (p.bias != nullptr) term.load(bias, at);
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        magnitudes[k] = 0.0f;
#pragma unroll
        for (int i = 0; i < kCount; ++i) magnitudes[k] = MaxMagnitude::combine(magnitudes[k], fabsf(normal(k, i)));
        if (!at.holds(k)) magnitudes[k] = 0.0f;
      }
    };
    const bool whole_row = p.groups <= 1;
    float row_scale = 1.0f;
    if (whole_row) {
      float magnitude = 0.0f;
      for (int tile = 0; tile < walk.tiles; ++tile) {
        prepare(walk.place(tile));
#pragma unroll
        for (int k = 0; k < kPacks; ++k) magnitude = MaxMagnitude::combine(magnitude, magnitudes[k]);
      }
      row_scale = scale_of_magnitude(team.template reduce<MaxMagnitude>(magnitude), largest);
      if (team.leads()) static_cast<float*>(p.scale)[row] = row_scale;
    }
    for (int tile = 0; tile < walk.tiles; ++tile) {
      const Place at = walk.place(tile);
      if (!whole_row || !resident) prepare(at);
      if (!whole_row) reduce_blocks<kCount, kPacks>(magnitudes, static_cast<int>(p.block));
      if (p.sum != nullptr) x.store({static_cast<T*>(p.sum) + row * p.cols}, at);
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        if (!at.holds(k)) continue;
        const float scale = whole_row ? row_scale : scale_of_magnitude(magnitudes[k], largest);
        if (!whole_row && at.col(k) % p.block == 0) {
          static_cast<float*>(p.scale)[row * p.groups + at.col(k) / p.block] = scale;
        }
        Pack<uint8_t, kCount> codes;
#pragma unroll
        for (int i = 0; i < kCount; ++i) codes.values[i] = encode(normal(k, i) / scale, p.quantized_dtype);
        store_whole(static_cast<uint8_t*>(p.quantized) + row * p.cols + at.col(k), codes);
      }
    }
  }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

void norm_quantize(const NormQuantizeParams& params, Stream stream) {
  visit_float(params.dtype, [&](auto tag) {
    using T = decltype(tag);
    constexpr int kPack = kPackSize<T>;
    const bool packs = params.cols % kPack == 0 && rows_fit_packs<T>(params.input) &&
                       rows_fit_packs<T>(params.residual) && row_fits_packs(params.weight) &&
                       row_fits_packs(params.bias);
    const auto run = [&](const RowPlan& plan, const auto& kernel) {
      launch("norm_quantize", kernel, plan.config(params.rows, stream), params);
    };
    constexpr int kHeld = 2;  // Beside the row a thread holds weight and bias.
    const RowPlan plan = plan_rows(params.cols, packs ? kHeld * kPack : kSinglePacks);
    if (!packs) {
      run(plan, norm_quantize_kernel<T, false, 1, kSinglePacks>);
    } else if (plan.threads == kWarpSize) {
      run(plan, norm_quantize_kernel<T, true, kPack, kHeld>);
    } else {
      run(plan, norm_quantize_kernel<T, false, kPack, kHeld>);
    }
  });
}

}  // namespace warpwright::cuda
