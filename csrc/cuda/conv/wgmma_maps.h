// What Hopper's convolutions ask of tensors before TMA can read and write them: host code.

#pragma once

#include "cuda/ptx/tensor_map.cuh"
#include "kernels/conv.h"

namespace warpwright::cuda {

// Positions of filters in one dimension of the tensor that they slide over.
struct ConvPositions {
  int64_t count, first, step;  // The first one's filter begins at element `first`.
  int64_t reach;               // Of a filter's last tap from its begin.
};

// A tensor (batch, channels, depth, height, width) whose pixels TMA finds: an im2col map of (channels, width[, height[,
// depth]], batch), or a tiled one of (channels, pixels), where filters are single elements and pixels lie evenly.
struct ConvPixelsMap {
  ptx::TensorLayout layout;
  ptx::Im2colBox box;
  int64_t reach[kConvDims];

  int dims() const { return layout.rank == 2 ? 0 : layout.rank - 2; }  // Of an im2col map.
  bool fits() const;
  ptx::TensorMap encode() const;
};

// The map of boxes of `pixels` by a span of channels, for positions in dimensions (width, height, depth).
ConvPixelsMap conv_pixels_map(const ConvParams& params, const ConvTensor& tensor, int64_t channels,
                              const int64_t (&size)[kConvDims], const ConvPositions (&positions)[kConvDims],
                              int pixels);

// (channels, width, height, depth, filters).
ptx::TensorLayout conv_weight_layout(const ConvParams& params);

// Elements from each pixel of a tensor to the next, over all images; `otherwise` where there is one pixel, 0 where they
// do not lie evenly.
int64_t conv_pixel_stride(const ConvTensor& tensor, int64_t batch, const int64_t (&size)[kConvDims], int64_t otherwise);

}  // namespace warpwright::cuda
