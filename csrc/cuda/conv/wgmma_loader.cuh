// How a convolution's operands come to the stages of Hopper's products (sm_90a): the producer's part, which is all that
// distinguishes its kernels from matmul's. TMA's im2col maps know where a filter's tap meets a pixel and read zeros in
// the padding, so an operand of pixels is a box at a pixel, moved on by a tap's offset.

#pragma once

#include "cuda/matmul/gemm_wgmma_consumer.cuh"
#include "kernels/conv.h"

namespace warpwright::cuda {

// Numbers of dimensions run from the innermost: width, height, depth. Those that a convolution lacks have a size of 1.
struct ConvWgmmaParams : GemmWgmmaParams {
  // Positions of an image: the product's rows, or of a weight's gradient what is summed over. Where in the tensor that
  // filters slide over the first one's filter begins, and the steps from one position, and tap, to the next.
  int size[kConvDims], first[kConvDims], step[kConvDims], dilation[kConvDims];
  int taps[kConvDims];
  int spatial;  // Dimensions that the im2col maps have.
  int spans;    // Of channels, of a tap.
};

struct ConvPixelsParams : ConvWgmmaParams {
  bool mirrored;  // The weight's taps are those of a gradient: the last one comes first.
  ConvNorm norm;  // With `bias` before it, in the place of gemm.bias.
  const void* bias;
};

struct ConvWeightParams : ConvWgmmaParams {
  int channels;
};

#if WARPWRIGHT_SM90A

// A position of an image.
struct ConvPixel {
  int at[kConvDims], image;

  __device__ __forceinline__ ConvPixel(const ConvWgmmaParams& p, unsigned index) {
#pragma unroll
    for (int d = 0; d < kConvDims; ++d) {
      const auto size = static_cast<unsigned>(p.size[d]);
      at[d] = static_cast<int>(index % size);
      index /= size;
    }
    image = static_cast<int>(index);
  }
};

// Loads a box of an im2col map: pixels from `base` of `image` on, by a span of channels from `channel` on.
__device__ __forceinline__ void load_pixels(unsigned char* to, const ptx::TensorMap* map, ptx::Mbarrier* full,
                                            int spatial, int channel, const int (&base)[kConvDims], int image,
                                            const int (&offset)[kConvDims]) {
  const auto x = static_cast<uint16_t>(offset[0]), y = static_cast<uint16_t>(offset[1]);
  switch (spatial) {
    case 1: return ptx::tma_load_im2col(to, map, full, {channel, base[0], image}, {x});
    case 2: return ptx::tma_load_im2col(to, map, full, {channel, base[0], base[1], image}, {x, y});
    default:
      return ptx::tma_load_im2col(to, map, full, {channel, base[0], base[1], base[2], image},
                                  {x, y, static_cast<uint16_t>(offset[2])});
  }
}

// Pixels by filters, along (tap, channel): the forward product, and the input's gradient as one over y.
template <int kTileM, int kTileN, bool kPingpong>
__device__ __forceinline__ void produce(const ConvPixelsParams& p, unsigned char* shared, bool leader) {
  if (!leader) return;
  using Layout = WgmmaLayout<kTileM, kTileN, kPingpong>;
  typename Layout::Stage stage;
  const int span = span_of(p.gemm.dtype);
  const auto load_step = [&](const WgmmaTile& tile, const int (&base)[kConvDims], int image,
                             const int (&tap)[kConvDims], int channel) {
    ptx::Mbarrier* const full = open_stage(Layout::ring(shared), stage, Layout::kStageBytes);
    unsigned char* const to = shared + stage.index * Layout::kStageBytes;
    unsigned char* const filters = to + Layout::kATileBytes;
    int offset[kConvDims], at[kConvDims];
#pragma unroll
    for (int d = 0; d < kConvDims; ++d) {
      offset[d] = tap[d] * p.dilation[d];
      at[d] = p.mirrored ? p.taps[d] - 1 - tap[d] : tap[d];
    }
    load_pixels(to, &p.a.map, full, p.spatial, channel, base, image, offset);
    if (p.b.along_k) {
      ptx::tma_load(filters, &p.b.map, full, {channel, at[0], at[1], at[2], tile.n0});
    } else {
      for (int row = 0; row < kTileN; row += kBoxRows) {
        ptx::tma_load(filters + row * kSpanBytes, &p.b.map, full, {tile.n0 + row, at[0], at[1], at[2], channel});
      }
    }
    stage.advance();
  };
  for (unsigned place = blockIdx.x; place < p.walk.places(); place += gridDim.x) {
    const WgmmaTile tile = p.walk.template tile<kTileM, kTileN>(place, 0);
    const ConvPixel pixel(p, static_cast<unsigned>(tile.m0));
    int base[kConvDims], tap[kConvDims];
#pragma unroll
    for (int d = 0; d < kConvDims; ++d) base[d] = p.first[d] + pixel.at[d] * p.step[d];
    for (tap[2] = 0; tap[2] < p.taps[2]; ++tap[2]) {
      for (tap[1] = 0; tap[1] < p.taps[1]; ++tap[1]) {
        for (tap[0] = 0; tap[0] < p.taps[0]; ++tap[0]) {
          for (int i = 0; i < p.spans; ++i) load_step(tile, base, pixel.image, tap, i * span);
        }
      }
    }
  }
}

// A span of channels of a tap: a box of columns of a weight's gradient.
struct ConvColumns {
  int span, tap[kConvDims];

  __device__ __forceinline__ ConvColumns(const ConvWgmmaParams& p, int box) {
    span = box % p.spans;
    box /= p.spans;
    tap[0] = box % p.taps[0];
    box /= p.taps[0];
    tap[1] = box % p.taps[1];
    tap[2] = box / p.taps[1];
  }

  // The next one; after the last one come the first ones again, whose sums nobody stores.
  __device__ __forceinline__ void advance(const ConvWgmmaParams& p) {
    if (++span < p.spans) return;
    span = 0;
#pragma unroll
    for (int d = 0; d < kConvDims; ++d) {
      if (++tap[d] < p.taps[d]) return;
      tap[d] = 0;
    }
  }
};

// Filters by (tap, channel), along pixels: both operands' rows lie together.
template <int kTileM, int kTileN, bool kPingpong>
__device__ __forceinline__ void produce(const ConvWeightParams& p, unsigned char* shared, bool leader) {
  if (!leader) return;
  using Layout = WgmmaLayout<kTileM, kTileN, kPingpong>;
  typename Layout::Stage stage;
  const int span = span_of(p.gemm.dtype);
  for (unsigned place = blockIdx.x; place < p.walk.places(); place += gridDim.x) {
    const WgmmaTile tile = p.walk.template tile<kTileM, kTileN>(place, 0);
    const ConvColumns first(p, tile.n0 / kBoxRows);
    for (int step = tile.first_step; step < tile.first_step + tile.steps; ++step) {
      ptx::Mbarrier* const full = open_stage(Layout::ring(shared), stage, Layout::kStageBytes);
      unsigned char* const to = shared + stage.index * Layout::kStageBytes;
      const ConvPixel pixel(p, static_cast<unsigned>(step * span));
      int base[kConvDims], offset[kConvDims];
#pragma unroll
      for (int d = 0; d < kConvDims; ++d) base[d] = p.first[d] + pixel.at[d] * p.step[d], offset[d] = 0;
      for (int row = 0; row < kTileM; row += kBoxRows) {
        load_pixels(to + row * kSpanBytes, &p.a.map, full, p.spatial, tile.m0 + row, pixel.at, pixel.image, offset);
      }
      ConvColumns columns = first;
      for (int row = 0; row < kTileN; row += kBoxRows) {
#pragma unroll
        for (int d = 0; d < kConvDims; ++d) offset[d] = columns.tap[d] * p.dilation[d];
        load_pixels(to + Layout::kATileBytes + row * kSpanBytes, &p.b.map, full, p.spatial, columns.span * kBoxRows,
                    base, pixel.image, offset);
        columns.advance(p);
      }
      stage.advance();
    }
  }
}

#endif  // WARPWRIGHT_SM90A

}  // namespace warpwright::cuda
