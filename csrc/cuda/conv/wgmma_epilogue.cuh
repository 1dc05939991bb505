// What convolutions on Hopper want otherwise than matrix products, once their operands have come: the hooks of
// gemm_wgmma_epilogue.cuh.

#pragma once

#include "cuda/conv/wgmma_loader.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/tile/reduction.cuh"

namespace warpwright::cuda {

#if WARPWRIGHT_SM90A

// ---- phases ----

// Each phase has its own number of taps. One that no tap meets has a step of zeros.
template <int kTileM, int kTileN>
__device__ __forceinline__ WgmmaTile tile_at(const ConvPixelsParams& p, unsigned place, unsigned rank) {
  WgmmaTile tile = p.walk.template tile<kTileM, kTileN>(place, rank);
  const ConvPhaseOf phase(p, tile.split);
  const int taps = phase.count(p);
  tile.steps = taps > 0 ? taps * p.spans : 1;
  return tile;
}

// All phases have as many rows as the largest: those of a smaller one past the output's edge are nobody's.
__device__ __forceinline__ int output_row(const ConvPixelsParams& p, const WgmmaTile& tile, int row) {
  if (!p.phased) return row;
  const ConvPhaseOf phase(p, tile.split);
  const ConvPixel pixel(p, static_cast<unsigned>(row));
  int64_t at = pixel.image;
#pragma unroll
  for (int d = kConvDims - 1; d >= 0; --d) {
    const int position = phase.origin[d] + pixel.at[d] * p.phases[d];
    if (position >= p.output_size[d]) return static_cast<int>(p.gemm.m);
    at = at * p.output_size[d] + position;
  }
  return at < p.gemm.m ? static_cast<int>(at) : static_cast<int>(p.gemm.m);
}

// ---- columns ----

// Of a weight's gradient the columns of a tap fill whole boxes; the last box may reach beyond its channels.
__device__ __forceinline__ int output_column(const ConvWeightParams& p, int col) {
  const int width = p.spans * kBoxRows, channel = col % width;
  return channel < p.channels ? col / width * p.channels + channel : static_cast<int>(p.gemm.n);
}

// A value of a channel, of a dtype that is known at run time.
__device__ __forceinline__ float half_channel_value(DType dtype, const PerChannel& values, int channel,
                                                    float otherwise) {
  if (values.data == nullptr) return otherwise;
  if (values.wide) return static_cast<const float*>(values.data)[channel];
  return from_bits(dtype, static_cast<const uint16_t*>(values.data)[channel]);
}

// The bias and the folded batch norm of a box of columns. A lane works the numbers of two columns out, and has them
// from the others for the pack in its hands: a square root and a division for each element would take longer than the
// products. The mean comes first, as in epilogue.cuh.
class FoldedNorm {
 public:
  static constexpr int kColumns = 64;  // Of a box.

  __device__ __forceinline__ FoldedNorm(const ConvPixelsParams& p, int col, int lane)
      : any_(p.norm.mean.data != nullptr) {
    if (!any_) return;
    const DType dtype = p.gemm.dtype;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int channel = col + 2 * lane + i;
      if (channel >= p.gemm.n) continue;
      const float bias = half_channel_value(dtype, {const_cast<void*>(p.bias), false}, channel, 0.0f);
      const float rstd = 1.0f / sqrtf(half_channel_value(dtype, p.norm.var, channel, 1.0f) + p.norm.eps);
      mean_[i] = half_channel_value(dtype, p.norm.mean, channel, 0.0f) - bias;
      scale_[i] = rstd * half_channel_value(dtype, p.norm.weight, channel, 1.0f);
      shift_[i] = half_channel_value(dtype, p.norm.bias, channel, 0.0f);
    }
  }

  // Of kPack columns from the (lane % kPacks)-th pack of the box on.
  __device__ __forceinline__ void operator()(float (&values)[kPack], int lane) const {
    if (!any_) return;
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      const int owner = lane % kPacks * (kPack / 2) + e / 2;
      const float mean = __shfl_sync(kFullMask, mean_[e % 2], owner);
      const float scale = __shfl_sync(kFullMask, scale_[e % 2], owner);
      const float shift = __shfl_sync(kFullMask, shift_[e % 2], owner);
      values[e] = (values[e] - mean) * scale + shift;
    }
  }

 private:
  static constexpr int kPacks = kColumns / kPack;
  bool any_;
  float mean_[2] = {}, scale_[2] = {}, shift_[2] = {};
};

template <int kColumns>
__device__ __forceinline__ FoldedNorm column_step(const ConvPixelsParams& p, int col, int lane) {
  static_assert(kColumns == FoldedNorm::kColumns);
  return {p, col, lane};
}

// ---- statistics ----

// A mean over some rows, and the squared differences to it.
struct Moments {
  float count, mean, squares;

  __device__ __forceinline__ void join(const Moments& other) {
    if (other.count == 0) return;
    const float total = count + other.count, difference = other.mean - mean;
    mean += difference * (other.count / total);
    squares += other.squares + difference * difference * (count * other.count / total);
    count = total;
  }
};

__device__ __forceinline__ float rounded_to(DType dtype, float value) {
  return dtype == DType::kFloat16 ? to_float(from_float<__half>(value)) : to_float(from_float<__nv_bfloat16>(value));
}

// Of the rows below `left` among a warp's 16 of each 64, a column's moments, in all eight lanes that hold some of its
// values: values[i], rows lane / 4 + 8 (i % 2) of the (i / 2)-th 64.
template <int kValues>
__device__ __forceinline__ Moments column_moments(const float (&values)[kValues], const bool (&there)[kValues],
                                                  float count) {
  const auto total = [&](const auto& term) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kValues; ++i) sum += there[i] ? term(values[i]) : 0.0f;
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(kFullMask, sum, lanes);
    return sum;
  };
  // Differences to the first value: a sum of large numbers would cost the mean some digits.
  const float origin = __shfl_sync(kFullMask, values[0], threadIdx.x % 4);
  const float offset = total([&](float v) { return v - origin; }) / (count > 0 ? count : 1.0f);
  return {count, origin + offset, total([&](float v) { return (v - origin - offset) * (v - origin - offset); })};
}

// Writes each channel's moments over the tile's rows, of what is stored, rounded: a warp those of its rows to its
// buffer, then each thread of the consumer joins the four warps' of a column.
template <int kMmas, int kSums>
__device__ __forceinline__ void measure(const ConvMeasuredParams& p, const WgmmaTile& tile,
                                        unsigned char (*buffers)[kWarpBufferBytes], int consumer,
                                        const float (&sums)[kMmas][kSums]) {
  constexpr int kN = 2 * kSums, kRows = kMmas * ptx::kWgmmaM, kValues = 2 * kMmas;
  static_assert(kN <= ptx::kWarpgroup && kN * 8 <= kWarpBufferBytes);
  const int thread = static_cast<int>(threadIdx.x) % ptx::kWarpgroup, lane = fresh_lane();
  const auto rows_of = [&](int warp) {
    int rows = 0;
#pragma unroll
    for (int i = 0; i < kMmas; ++i) {
      const int left = static_cast<int>(p.gemm.m) - tile.m0 - i * ptx::kWgmmaM - warp * kWarpRows;
      rows += left < 0 ? 0 : left < kWarpRows ? left : kWarpRows;
    }
    return static_cast<float>(rows);
  };
  bool there[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    there[i] = tile.m0 + i / 2 * ptx::kWgmmaM + thread / 32 * kWarpRows + i % 2 * 8 + lane / 4 < p.gemm.m;
  }
  const float count = rows_of(thread / 32);
  ptx::tma_store_wait_read<0>();  // The buffers', which are used otherwise now: lane 0's stores.
  __syncwarp();
  auto* const own = reinterpret_cast<float2*>(buffers[thread / 32]);
#pragma unroll
  for (int j = 0; j < kSums / 2; ++j) {
    const int col = j / 2 * 8 + lane % 4 * 2 + j % 2;
    const int channel = tile.n0 + col;
    float bias = 0.0f;
    if (p.gemm.bias != nullptr && channel < p.gemm.n) {
      bias = from_bits(p.gemm.dtype, static_cast<const uint16_t*>(p.gemm.bias)[channel]);
    }
    float values[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      values[i] = rounded_to(p.gemm.dtype, sums[i / 2][j / 2 * 4 + i % 2 * 2 + j % 2] + bias);
    }
    const Moments moments = column_moments(values, there, count);
    if (lane < 4) own[col] = {moments.mean, moments.squares};
  }
  ptx::named_barrier_sync(1 + consumer, ptx::kWarpgroup);
  if (thread < kN && tile.n0 + thread < p.gemm.n) {
    Moments all{};
#pragma unroll
    for (int warp = 0; warp < kWgmmaWarps; ++warp) {
      const float2 part = reinterpret_cast<const float2*>(buffers[warp])[thread];
      all.join({rows_of(warp), part.x, part.y});
    }
    const int64_t to = static_cast<int64_t>(tile.m0 / kRows) * p.gemm.n + tile.n0 + thread;
    p.mean_partials[to] = all.mean;
    p.square_partials[to] = all.squares;
  }
  ptx::named_barrier_sync(1 + consumer, ptx::kWarpgroup);  // Nobody uses a buffer again before.
}

#endif  // WARPWRIGHT_SM90A

}  // namespace warpwright::cuda
