// What a convolution's epilogue has that a matrix product's lacks: hooks of gemm_wgmma_epilogue.cuh.

#pragma once

#include "cuda/conv/wgmma_loader.cuh"
#include "cuda/tile/reduction.cuh"

namespace warpwright::cuda {

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

  // Of kPack columns from the (lane % 8)-th pack of the box on.
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

// Of a weight's gradient the columns of a tap fill whole boxes; the last box may reach beyond its channels.
__device__ __forceinline__ int output_column(const ConvWeightParams& p, int col) {
  const int width = p.spans * kBoxRows, channel = col % width;
  return channel < p.channels ? col / width * p.channels + channel : static_cast<int>(p.gemm.n);
}

}  // namespace warpwright::cuda
