// What Hopper's convolutions ask of tensors before TMA can read and write them: host code.

#pragma once

#include "cuda/ptx/tensor_map.cuh"
#include "kernels/conv.h"

namespace warpwright::cuda {

// A tensor (batch, channels, depth, height, width) whose pixels an im2col map finds: (channels, width[, height[,
// depth]], batch).
struct ConvPixelsMap {
  ptx::TensorLayout layout;
  ptx::Im2colBox box;
  int64_t reach[kConvDims];  // Of the last tap from a filter's first one.

  bool fits() const;
  ptx::TensorMap encode() const { return ptx::encode_im2col(layout, box, ptx::Swizzle::k128Bytes); }
};

// Positions of filters in one dimension of the tensor that they slide over.
struct ConvPositions {
  int64_t count, first, step;  // The first one's filter begins at element `first`.
  int64_t taps, dilation;
};

// How many dimensions of a convolution are more than one element and one tap, of depth, height and width: at least 1.
int conv_spatial_dims(const ConvParams& params);

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
