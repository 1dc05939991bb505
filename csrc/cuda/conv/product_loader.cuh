// How the tiles of product.cuh's product come to shared memory, and how its sums leave.

#pragma once

#include "cuda/conv/epilogue.cuh"
#include "cuda/conv/operands.cuh"

namespace warpwright::cuda {

// Starts a step's copies of vectors of channels; the filters lie along K, or (kFiltersAlongK false) along rows.
template <class Tile, bool kFiltersAlongK>
class ProductLoader {
 public:
  __device__ __forceinline__ ProductLoader(const Product<typename Tile::Element>& product, int64_t m0, int64_t n0)
      : product_(product) {
    at_.advance(Pixels::k(), product.channels, product.taps);
#pragma unroll
    for (int i = 0; i < Pixels::kCount; ++i) rows_[i] = pixel_row(product, m0 + Pixels::row(i));
    if constexpr (kFiltersAlongK) {
      filter_ = static_cast<int>(n0) + Filters::row(0);
    } else {
      filter_ = static_cast<int>(n0) + Across::row();
#pragma unroll
      for (int i = 0; i < Across::kCount; ++i) across_[i].advance(Across::k(i), product.channels, product.taps);
    }
  }

  __device__ __forceinline__ void start(unsigned char* a_tile, unsigned char* b_tile) {
    const bool inside = at_.inside(product_.taps);
#pragma unroll
    for (int i = 0; i < Pixels::kCount; ++i) {
      const typename Tile::Element* from = inside ? pixel_at(product_.pixels, rows_[i], at_) : nullptr;
      start_vector(a_tile + Tile::template place<true, Tile::kM>(Pixels::row(i), Pixels::k()), from,
                   product_.pixels.data);
    }
    if constexpr (kFiltersAlongK) {
#pragma unroll
      for (int i = 0; i < Filters::kCount; ++i) {
        const int row = filter_ + i * Filters::kRowsAtOnce;
        const bool there = inside && row < product_.filters.rows;
        start_vector(b_tile + Tile::template place<true, Tile::kN>(Filters::row(i), Filters::k()),
                     there ? filter_at(product_.filters, row, at_) : nullptr, product_.filters.data);
      }
    } else {
#pragma unroll
      for (int i = 0; i < Across::kCount; ++i) {
        const bool there = across_[i].inside(product_.taps) && filter_ < product_.filters.rows;
        start_vector(b_tile + Tile::template place<false, Tile::kN>(Across::row(), Across::k(i)),
                     there ? filter_at(product_.filters, filter_, across_[i]) : nullptr, product_.filters.data);
        across_[i].advance(Tile::kInner, product_.channels, product_.taps);
      }
    }
    at_.advance(Tile::kInner, product_.channels, product_.taps);
  }

 private:
  using Pixels = VectorShare<Tile, Tile::kM>;
  using Filters = VectorShare<Tile, Tile::kN>;
  using Across = AcrossShare<Tile, Tile::kN>;
  const Product<typename Tile::Element>& product_;
  TapWalk at_, across_[Across::kCount];
  PixelRow rows_[Pixels::kCount];
  int filter_;
};

// Reads element by element.
template <class Tile>
class ProductRunLoader {
  using Element = typename Tile::Element;

 public:
  __device__ __forceinline__ ProductRunLoader(const Product<Element>& product, int64_t m0, int64_t n0)
      : product_(product), row_(pixel_row(product, m0 + Pixels::row())), filter_(n0 + Filters::row()) {
    pixel_.advance(Pixels::k(), product.channels, product.taps);
    weight_.advance(Filters::k(), product.channels, product.taps);
  }

  __device__ __forceinline__ void start(unsigned char* a_tile, unsigned char* b_tile) {
    write_run<Tile, Tile::kM>(a_tile, product_.pixels.data, [&] {
      const Element* at = pixel_.inside(product_.taps) ? pixel_at(product_.pixels, row_, pixel_) : nullptr;
      pixel_.advance(1, product_.channels, product_.taps);
      return at;
    });
    pixel_.advance(Tile::kInner - Pixels::kLength, product_.channels, product_.taps);
    write_run<Tile, Tile::kN>(b_tile, product_.filters.data, [&] {
      const bool inside = weight_.inside(product_.taps) && filter_ < product_.filters.rows;
      const Element* at = inside ? filter_at(product_.filters, filter_, weight_) : nullptr;
      weight_.advance(1, product_.channels, product_.taps);
      return at;
    });
    weight_.advance(Tile::kInner - Filters::kLength, product_.channels, product_.taps);
  }

 private:
  using Pixels = RunShare<Tile, Tile::kM>;
  using Filters = RunShare<Tile, Tile::kN>;
  const Product<Element>& product_;
  TapWalk pixel_, weight_;
  PixelRow row_;
  int64_t filter_;
};

// Calls store(place, channel, sums, count) for pieces of a tile's sums: of up to kStoredColumns neighbouring channels
// of the group, from `channel` on, at a place of `output`. Neighbouring threads take neighbouring channels where those
// lie together, else pixels.
inline constexpr int kStoredColumns = 8;  // of a thread at a time: a row's place is worked out once for them.
template <class Tile, class Store>
__device__ __forceinline__ void for_each_piece(const ConvTensor& output, const Product<typename Tile::Element>& product,
                                               const float* staged, int64_t m0, int64_t n0, const Store& store) {
  const bool channels_together = output.stride[1] == 1;
  constexpr int kColumns = kStoredColumns;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kM * Tile::kN / kColumns; i += Tile::kThreads) {
    const int row = channels_together ? i / (Tile::kN / kColumns) : i % Tile::kM;
    const int col = (channels_together ? i % (Tile::kN / kColumns) : i / Tile::kM) * kColumns;
    if (m0 + row >= product.rows || n0 + col >= product.filters.rows) continue;
    ConvPlace place = place_at(m0 + row, product.size);
#pragma unroll
    for (int d = 0; d < kConvDims; ++d) {
      place.position[d] = product.written[d] + place.position[d] * product.written_step[d];
    }
    const int64_t left = product.filters.rows - n0 - col;
    store(place, n0 + col, staged + row * Tile::kStagedColumns + col,
          left < kColumns ? static_cast<int>(left) : kColumns);
  }
}

// Finishes the sums of a tile.
template <class T, class Tile>
__device__ __forceinline__ void store_tile(const ConvParams& p, const ConvTensor& output,
                                           const Product<typename Tile::Element>& product, const float* staged,
                                           int64_t m0, int64_t n0, int64_t first_channel) {
  const auto store = [&](const ConvPlace& place, int64_t channel, const float* sums, int count) {
    store_channels<T, kStoredColumns>(p, output, place, first_channel + channel, sums, count);
  };
  for_each_piece<Tile>(output, product, staged, m0, n0, store);
}

}  // namespace warpwright::cuda
