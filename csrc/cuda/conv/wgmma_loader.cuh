// How a convolution's operands come to the stages of Hopper's products (sm_90a): the producer's part, which is all that
// distinguishes its kernels from matmul's. TMA's im2col maps know where a filter's tap meets a pixel and read zeros in
// the padding, so an operand of pixels is a box at a pixel, moved on by a tap's offset.

#pragma once

#include "cuda/matmul/gemm_wgmma_consumer.cuh"
#include "kernels/conv.h"

namespace warpwright::cuda {

// Dimensions are numbered from the innermost: width, height, depth. Those that a convolution lacks have a size of 1.
struct ConvWgmmaParams : GemmWgmmaParams {
  // Positions of an image: the product's rows, or of a weight's gradient what is summed over. Where in the tensor that
  // filters slide over the first one's filter begins, and the steps from one position, and tap, to the next.
  int size[kConvDims], first[kConvDims], step[kConvDims], dilation[kConvDims];
  int a_dims, b_dims;  // That an operand's im2col map has; 0 for a map of (pixels, channels).
  int spans;           // Of channels, of a tap.
};

// A phase of one dimension: output positions origin + i * stride, and the taps that meet them, which are the same for
// all. The forward product has one phase, a gradient of the input as many as the stride.
struct ConvTaps {
  int taps;
  int offset;  // Of the first tap from a filter's begin.
  int first;   // Its number in the weight.
};
inline constexpr int kMostPhases = 4;  // Of a dimension.

struct ConvPixelsParams : ConvWgmmaParams {
  ConvTaps phase[kConvDims][kMostPhases];
  int phases[kConvDims];
  int tap_step[kConvDims];     // In the weight, from one tap of a phase to the next.
  int output_size[kConvDims];  // Positions of all phases.
  bool phased;                 // More than one phase.
  ConvNorm norm;               // With `bias` before it, in the place of gemm.bias.
  const void* bias;
};

// The statistics of the results, as conv.h has them, are wanted too, of slabs as large as a tile.
struct ConvMeasuredParams : ConvPixelsParams {
  float *mean_partials, *square_partials;
};

struct ConvWeightParams : ConvWgmmaParams {
  int taps[kConvDims];
  int channels;
  void* grad_bias;       // As conv.h has it,
  float* bias_partials;  // and where the sum has more than one part, (splits, filters).
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

// Number `split` of the walk's is a phase of each dimension.
struct ConvPhaseOf {
  int origin[kConvDims];

  __device__ __forceinline__ ConvPhaseOf(const ConvPixelsParams& p, int split) {
#pragma unroll
    for (int d = 0; d < kConvDims; ++d) {
      origin[d] = split % p.phases[d];
      split /= p.phases[d];
    }
  }

  __device__ __forceinline__ const ConvTaps& taps(const ConvPixelsParams& p, int d) const {
    return p.phase[d][origin[d]];
  }
  __device__ __forceinline__ int count(const ConvPixelsParams& p) const {
    return taps(p, 0).taps * taps(p, 1).taps * taps(p, 2).taps;
  }
};

// Loads a box of pixels from number `index` on by a span of channels from `channel` on: by an im2col map from `base` of
// `image` on.
__device__ __forceinline__ void load_pixels(unsigned char* to, const ptx::TensorMap* map, ptx::Mbarrier* full, int dims,
                                            int channel, int index, const int (&base)[kConvDims], int image,
                                            const int (&offset)[kConvDims]) {
  const auto x = static_cast<uint16_t>(offset[0]), y = static_cast<uint16_t>(offset[1]),
             z = static_cast<uint16_t>(offset[2]);
  switch (dims) {
    case 0: return ptx::tma_load(to, map, full, {channel, index});
    case 1: return ptx::tma_load_im2col(to, map, full, {channel, base[0], image}, {x});
    case 2: return ptx::tma_load_im2col(to, map, full, {channel, base[0], base[1], image}, {x, y});
    default: return ptx::tma_load_im2col(to, map, full, {channel, base[0], base[1], base[2], image}, {x, y, z});
  }
}

// Pixels by filters, along (tap, channel): the forward product, and the input's gradient as one over y.
template <int kTileM, int kTileN, bool kPingpong>
__device__ __forceinline__ void produce(const ConvPixelsParams& p, unsigned char* shared, bool leader) {
  if (!leader) return;
  using Layout = WgmmaLayout<kTileM, kTileN, kPingpong>;
  typename Layout::Stage stage;
  const int span = span_of(p.gemm.dtype);
  // The stage's boxes at an offset of the filter, and at a tap of the weight, from `channel` on.
  const auto load_stage = [&](const WgmmaTile& tile, const int (&base)[kConvDims], int image,
                              const int (&offset)[kConvDims], const int (&tap)[kConvDims], int channel) {
    ptx::Mbarrier* const full = open_stage(Layout::ring(shared), stage, Layout::kStageBytes);
    unsigned char* const to = shared + stage.index * Layout::kStageBytes;
    unsigned char* const filters = to + Layout::kATileBytes;
    load_pixels(to, &p.a.map, full, p.a_dims, channel, tile.m0, base, image, offset);
    if (p.b.along_k) {
      ptx::tma_load(filters, &p.b.map, full, {channel, tap[0], tap[1], tap[2], tile.n0});
    } else {
      for (int row = 0; row < kTileN; row += kBoxRows) {
        ptx::tma_load(filters + row * kSpanBytes, &p.b.map, full, {tile.n0 + row, tap[0], tap[1], tap[2], channel});
      }
    }
    stage.advance();
  };
  for (unsigned place = blockIdx.x; place < p.walk.places(); place += gridDim.x) {
    const WgmmaTile tile = p.walk.template tile<kTileM, kTileN>(place, 0);
    const ConvPhaseOf phase(p, tile.split);
    const ConvPixel pixel(p, static_cast<unsigned>(tile.m0));
    int base[kConvDims], offset[kConvDims] = {}, tap[kConvDims] = {};
#pragma unroll
    for (int d = 0; d < kConvDims; ++d) base[d] = p.first[d] + pixel.at[d] * p.step[d];
    if (phase.count(p) == 0) {  // Past the last channel TMA reads zeros.
      load_stage(tile, base, pixel.image, offset, tap, p.spans * span);
      continue;
    }
    // Calls next() for each of the phase's taps in dimension d.
    const auto each_tap = [&](int d, const auto& next) {
      const ConvTaps taps = phase.taps(p, d);
      offset[d] = taps.offset, tap[d] = taps.first;
      for (int i = 0; i < taps.taps; ++i) {
        next();
        offset[d] += p.dilation[d], tap[d] += p.tap_step[d];
      }
    };
    each_tap(2, [&] {
      each_tap(1, [&] {
        each_tap(0, [&] {
          for (int i = 0; i < p.spans; ++i) load_stage(tile, base, pixel.image, offset, tap, i * span);
        });
      });
    });
  }
}

// A span of channels of a tap: a box of columns of a weight's gradient.
struct ConvColumns {
  int span, tap[kConvDims];

  __device__ __forceinline__ ConvColumns(const ConvWeightParams& p, int box) {
    span = box % p.spans;
    box /= p.spans;
#pragma unroll
    for (int d = 0; d < kConvDims; ++d) {
      tap[d] = box % p.taps[d];
      box /= p.taps[d];
    }
  }

  // The next one; after the last one come the first ones again, whose sums nobody stores.
  __device__ __forceinline__ void advance(const ConvWeightParams& p) {
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
    for (int step = 0; step < tile.steps; ++step) {
      const int index = (tile.first_step + step) * span;
      const ConvPixel pixel(p, static_cast<unsigned>(index));
      int base[kConvDims], offset[kConvDims] = {};
#pragma unroll
      for (int d = 0; d < kConvDims; ++d) base[d] = p.first[d] + pixel.at[d] * p.step[d];
      ptx::Mbarrier* const full = open_stage(Layout::ring(shared), stage, Layout::kStageBytes);
      unsigned char* to = shared + stage.index * Layout::kStageBytes;
      for (int row = 0; row < kTileM; row += kBoxRows, to += kBoxBytes) {
        load_pixels(to, &p.a.map, full, p.a_dims, tile.m0 + row, index, pixel.at, pixel.image, offset);
      }
      ConvColumns columns = first;
      for (int col = 0; col < kTileN; col += kBoxRows, to += kBoxBytes) {
#pragma unroll
        for (int d = 0; d < kConvDims; ++d) offset[d] = columns.tap[d] * p.dilation[d];
        load_pixels(to, &p.b.map, full, p.b_dims, columns.span * kBoxRows, index, base, pixel.image, offset);
        columns.advance(p);
      }
      stage.advance();
    }
  }
}

#endif  // WARPWRIGHT_SM90A

}  // namespace warpwright::cuda
