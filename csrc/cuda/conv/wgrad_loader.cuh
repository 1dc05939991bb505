// How the tiles of a weight's gradient come to shared memory: y's by filters and x's by (tap, channel), along pixels.

#pragma once

#include "cuda/conv/operands.cuh"

namespace warpwright::cuda {

// A pixel of y, moved on by additions: a step is given in digits, of which each carries at most once.
struct PixelWalk {
  int64_t image = 0, left = 0;  // left: pixels from here to the end of the part
  int position[kConvDims] = {};

  PixelWalk() = default;
  __device__ __forceinline__ PixelWalk(const ConvParams& p, int64_t pixel, int64_t end) : left(end - pixel) {
    const ConvPlace place = place_at(left > 0 ? pixel : 0, p.y_size);
    image = place.line;
#pragma unroll
    for (int d = 0; d < kConvDims; ++d) position[d] = static_cast<int>(place.position[d]);
  }

  __device__ __forceinline__ void advance(const ConvParams& p, int count, const ConvPlace& step) {
    left -= count;
    int carry = 0;
#pragma unroll
    for (int d = kConvDims - 1; d >= 0; --d) {
      const int size = static_cast<int>(p.y_size[d]), next = position[d] + static_cast<int>(step.position[d]) + carry;
      carry = next >= size ? 1 : 0;
      position[d] = next - carry * size;
    }
    image += step.line + carry;
  }
};

// The element of y at a pixel, from `first` on, a filter's first element of the first image; null past the end.
template <class Element>
__device__ __forceinline__ const Element* y_at(const ConvParams& p, const Element* first, const PixelWalk& at) {
  int64_t offset = at.image * p.y.stride[0];
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) offset += at.position[d] * p.y.stride[2 + d];
  return at.left > 0 ? first + offset : nullptr;
}

// What a column (tap, channel) of the weight reads of x.
template <class Element>
struct Column {
  const Element* first = nullptr;  // the channel's first element of the first image; null past the last column
  int shift[kConvDims] = {};       // from position * stride to the element that the tap meets
};
template <class Element>
__device__ __forceinline__ Column<Element> column_at(const ConvParams& p, int64_t group, int64_t column) {
  Column<Element> result;
  const int64_t channels = p.group_channels();
  if (column >= channels * p.taps()) return result;
  const ConvPlace tap = place_at(column / channels, p.kernel);
  const int64_t channel = group * channels + column % channels;
  result.first = static_cast<const Element*>(p.x.data) + channel * p.x.stride[1];
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    result.shift[d] = static_cast<int>(tap.position[d] * p.dilation[d] - p.padding[d]);
  }
  return result;
}
template <class Element>
__device__ __forceinline__ const Element* x_at(const ConvParams& p, const Column<Element>& column,
                                               const PixelWalk& at) {
  int64_t offset = at.image * p.x.stride[0];
  bool inside = column.first != nullptr && at.left > 0;
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    const int i = at.position[d] * static_cast<int>(p.stride[d]) + column.shift[d];
    inside = inside && i >= 0 && i < static_cast<int>(p.x_size[d]);
    offset += i * p.x.stride[2 + d];
  }
  return inside ? column.first + offset : nullptr;
}

// The block's part of the sum, and its tile.
struct Part {
  int64_t group, m0, n0;  // the group's first filter and column of the tile
  int64_t first, end;     // pixels
};

// The thread's filter, at its first element of the first image; null past the last filter.
template <class Element>
__device__ __forceinline__ const Element* filter_of(const ConvParams& p, const Part& part, int row) {
  const int64_t filter = part.m0 + row;
  if (filter >= p.group_filters()) return nullptr;
  return static_cast<const Element*>(p.y.data) + (part.group * p.group_filters() + filter) * p.y.stride[1];
}

// Vectors of filters, and of channels of a tap.
template <class Tile>
class WgradLoader {
  using Element = typename Tile::Element;

 public:
  __device__ __forceinline__ WgradLoader(const ConvParams& p, const Part& part)
      : p_(p),
        step_(place_at(Tile::kInner, p.y_size)),
        filter_(filter_of<Element>(p, part, Filters::row())),
        column_(column_at<Element>(p, part.group, part.n0 + Columns::row())) {
#pragma unroll
    for (int i = 0; i < Filters::kCount; ++i) walks_[i] = PixelWalk(p, part.first + Filters::k(i), part.end);
    if constexpr (!kOneWalk) {
#pragma unroll
      for (int i = 0; i < Columns::kCount; ++i) others_[i] = PixelWalk(p, part.first + Columns::k(i), part.end);
    }
  }

  __device__ __forceinline__ void start(unsigned char* a_tile, unsigned char* b_tile) {
#pragma unroll
    for (int i = 0; i < Filters::kCount; ++i) {
      start_vector(a_tile + Tile::template place<false, Tile::kM>(Filters::row(), Filters::k(i)),
                   filter_ == nullptr ? nullptr : y_at(p_, filter_, walks_[i]), static_cast<const Element*>(p_.y.data));
      if constexpr (kOneWalk) start_column(b_tile, i, walks_[i]);
      walks_[i].advance(p_, Tile::kInner, step_);
    }
    if constexpr (!kOneWalk) {
#pragma unroll
      for (int i = 0; i < Columns::kCount; ++i) {
        start_column(b_tile, i, others_[i]);
        others_[i].advance(p_, Tile::kInner, step_);
      }
    }
  }

 private:
  using Filters = AcrossShare<Tile, Tile::kM>;
  using Columns = AcrossShare<Tile, Tile::kN>;
  // Of a square tile a thread copies the same steps of K for both operands.
  static constexpr bool kOneWalk = Filters::kStep == Columns::kStep;

  __device__ __forceinline__ void start_column(unsigned char* b_tile, int i, const PixelWalk& walk) const {
    start_vector(b_tile + Tile::template place<false, Tile::kN>(Columns::row(), Columns::k(i)), x_at(p_, column_, walk),
                 static_cast<const Element*>(p_.x.data));
  }

  const ConvParams& p_;
  const ConvPlace step_;
  const Element* filter_;
  Column<Element> column_;
  PixelWalk walks_[Filters::kCount], others_[kOneWalk ? 1 : Columns::kCount];
};

// Element by element.
template <class Tile>
class WgradRunLoader {
  using Element = typename Tile::Element;

 public:
  __device__ __forceinline__ WgradRunLoader(const ConvParams& p, const Part& part)
      : p_(p),
        one_(place_at(1, p.y_size)),
        filter_rest_(place_at(Tile::kInner - Filters::kLength, p.y_size)),
        column_rest_(place_at(Tile::kInner - Columns::kLength, p.y_size)),
        filter_(filter_of<Element>(p, part, Filters::row())),
        column_(column_at<Element>(p, part.group, part.n0 + Columns::row())),
        y_(p, part.first + Filters::k(), part.end),
        x_(p, part.first + Columns::k(), part.end) {}

  __device__ __forceinline__ void start(unsigned char* a_tile, unsigned char* b_tile) {
    write_run<Tile, Tile::kM>(a_tile, static_cast<const Element*>(p_.y.data), [&] {
      const Element* at = filter_ == nullptr ? nullptr : y_at(p_, filter_, y_);
      y_.advance(p_, 1, one_);
      return at;
    });
    y_.advance(p_, Tile::kInner - Filters::kLength, filter_rest_);
    write_run<Tile, Tile::kN>(b_tile, static_cast<const Element*>(p_.x.data), [&] {
      const Element* at = x_at(p_, column_, x_);
      x_.advance(p_, 1, one_);
      return at;
    });
    x_.advance(p_, Tile::kInner - Columns::kLength, column_rest_);
  }

 private:
  using Filters = RunShare<Tile, Tile::kM>;
  using Columns = RunShare<Tile, Tile::kN>;
  const ConvParams& p_;
  const ConvPlace one_, filter_rest_, column_rest_;
  const Element* filter_;
  Column<Element> column_;
  PixelWalk y_, x_;
};

}  // namespace warpwright::cuda
