// The forward product and the input's gradient as one relation: pixels of a phase, which filters slide over, and where
// each reads and writes.

#pragma once

#include "cuda/conv/geometry.cuh"

namespace warpwright::cuda {

// A position in a filter's (tap, channel), counted without divisions.
struct TapWalk {
  int channel = 0, tap[kConvDims] = {};

  __device__ __forceinline__ void advance(int count, int channels, const int (&taps)[kConvDims]) {
    channel += count;
    while (channel >= channels && tap[0] < taps[0]) {
      channel -= channels;
      if (++tap[2] < taps[2]) continue;
      tap[2] = 0;
      if (++tap[1] < taps[1]) continue;
      tap[1] = 0;
      ++tap[0];
    }
  }
  __device__ __forceinline__ bool inside(const int (&taps)[kConvDims]) const { return tap[0] < taps[0]; }
};

// What the rows of pixels read: position origin + tap * step of a tensor, nothing outside of it.
template <class Element>
struct PixelSource {
  const Element* data;  // of the group's first channel
  int64_t image_stride, channel_stride, stride[kConvDims];
  int size[kConvDims], step[kConvDims];
};
// One row of pixels.
struct PixelRow {
  int64_t base;  // offset of the image's first element of the channel
  int origin[kConvDims];
  bool there;
};

// The element that a row meets through a tap, or null outside the tensor.
template <class Element>
__device__ __forceinline__ const Element* pixel_at(const PixelSource<Element>& source, const PixelRow& row,
                                                   const TapWalk& at) {
  int64_t offset = row.base + at.channel * source.channel_stride;
  bool inside = row.there;
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    const int i = row.origin[d] + at.tap[d] * source.step[d];
    inside = inside && i >= 0 && i < source.size[d];
    offset += i * source.stride[d];
  }
  return inside ? source.data + offset : nullptr;
}

// What the rows of filters read. A row is a filter, or for the gradient of the input a channel.
template <class Element>
struct FilterSource {
  const Element* data;  // of the group's first filter and channel, at the first tap
  int64_t row_stride, channel_stride, tap_stride[kConvDims];
  int rows;
};
template <class Element>
__device__ __forceinline__ const Element* filter_at(const FilterSource<Element>& source, int64_t row,
                                                    const TapWalk& at) {
  int64_t offset = row * source.row_stride + at.channel * source.channel_stride;
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) offset += at.tap[d] * source.tap_stride[d];
  return source.data + offset;
}

// One product: the pixels of a phase (of all positions, for the forward product) by the rows of a group's filters.
template <class Element>
struct Product {
  PixelSource<Element> pixels;
  FilterSource<Element> filters;
  int channels, taps[kConvDims];                        // of the inner dimension
  int64_t rows;                                         // of pixels
  int64_t size[kConvDims];                              // the rows' positions
  int origin[kConvDims], origin_step[kConvDims];        // of a row in the source: origin + position * origin_step
  int64_t written[kConvDims], written_step[kConvDims];  // the same in what is written
};

template <class Element>
__device__ __forceinline__ Product<Element> fprop_product(const ConvParams& p, int64_t group) {
  Product<Element> product{};
  product.pixels.data = static_cast<const Element*>(p.x.data) + group * p.group_channels() * p.x.stride[1];
  product.pixels.image_stride = p.x.stride[0];
  product.pixels.channel_stride = p.x.stride[1];
  product.filters.data = static_cast<const Element*>(p.w.data) + group * p.group_filters() * p.w.stride[0];
  product.filters.row_stride = p.w.stride[0];
  product.filters.channel_stride = p.w.stride[1];
  product.filters.rows = static_cast<int>(p.group_filters());
  product.channels = static_cast<int>(p.group_channels());
  product.rows = p.y_pixels();
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    product.pixels.stride[d] = p.x.stride[2 + d];
    product.pixels.size[d] = static_cast<int>(p.x_size[d]);
    product.pixels.step[d] = static_cast<int>(p.dilation[d]);
    product.filters.tap_stride[d] = p.w.stride[2 + d];
    product.taps[d] = static_cast<int>(p.kernel[d]);
    product.size[d] = p.y_size[d];
    product.origin[d] = static_cast<int>(-p.padding[d]);
    product.origin_step[d] = static_cast<int>(p.stride[d]);
    product.written[d] = 0;
    product.written_step[d] = 1;
  }
  return product;
}

template <class Element>
__device__ __forceinline__ Product<Element> dgrad_product(const ConvParams& p, int64_t group, const ConvPhase& phase) {
  Product<Element> product{};
  product.pixels.data = static_cast<const Element*>(p.y.data) + group * p.group_filters() * p.y.stride[1];
  product.pixels.image_stride = p.y.stride[0];
  product.pixels.channel_stride = p.y.stride[1];
  product.filters.data = static_cast<const Element*>(p.w.data) + group * p.group_filters() * p.w.stride[0];
  product.filters.row_stride = p.w.stride[1];
  product.filters.channel_stride = p.w.stride[0];
  product.filters.rows = static_cast<int>(p.group_channels());
  product.channels = static_cast<int>(p.group_filters());
  product.rows = phase.pixels(p.batch);
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    product.pixels.stride[d] = p.y.stride[2 + d];
    product.pixels.size[d] = static_cast<int>(p.y_size[d]);
    product.pixels.step[d] = static_cast<int>(-phase.y_step[d]);
    product.filters.data += phase.first_tap[d] * p.w.stride[2 + d];
    product.filters.tap_stride[d] = phase.tap_step[d] * p.w.stride[2 + d];
    product.taps[d] = static_cast<int>(phase.taps[d]);
    product.size[d] = phase.size[d];
    product.origin[d] = static_cast<int>(phase.first_y[d]);
    product.origin_step[d] = 1;
    product.written[d] = phase.origin[d];
    product.written_step[d] = p.stride[d];
  }
  return product;
}

template <class Element>
__device__ __forceinline__ PixelRow pixel_row(const Product<Element>& product, int64_t row) {
  PixelRow result{0, {}, row < product.rows};
  if (!result.there) return result;
  const ConvPlace place = place_at(row, product.size);
  result.base = place.line * product.pixels.image_stride;
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    result.origin[d] = product.origin[d] + static_cast<int>(place.position[d]) * product.origin_step[d];
  }
  return result;
}

}  // namespace warpwright::cuda
