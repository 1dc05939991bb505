// The weight's gradient on the tensor cores: filters by (tap, channel), summed over the pixels of y.
//
// The pixels are cut into parts where the tiles alone are few: wgrad_parts.h.

#include <algorithm>
#include <type_traits>

#include "cuda/conv/conv_mma.cuh"
#include "cuda/conv/epilogue.cuh"
#include "cuda/conv/operands.cuh"
#include "cuda/conv/wgrad_parts.h"
#include "cuda/dtype.cuh"
#include "cuda/launch.h"
#include "cuda/tile/mma_tile.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

using Large = LargeMmaTile;
using Middle = MmaTile<64, 64, 2, 2, 4>;

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
__device__ __forceinline__ const uint16_t* y_at(const ConvParams& p, const uint16_t* first, const PixelWalk& at) {
  int64_t offset = at.image * p.y.stride[0];
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) offset += at.position[d] * p.y.stride[2 + d];
  return at.left > 0 ? first + offset : nullptr;
}

// What a column (tap, channel) of the weight reads of x.
struct Column {
  const uint16_t* first = nullptr;  // the channel's first element of the first image; null past the last column
  int shift[kConvDims] = {};        // from position * stride to the element that the tap meets
};
__device__ __forceinline__ Column column_at(const ConvParams& p, int64_t group, int64_t column) {
  Column result;
  const int64_t channels = p.group_channels();
  if (column >= channels * p.taps()) return result;
  const ConvPlace tap = place_at(column / channels, p.kernel);
  const int64_t channel = group * channels + column % channels;
  result.first = static_cast<const uint16_t*>(p.x.data) + channel * p.x.stride[1];
#pragma unroll
  for (int d = 0; d < kConvDims; ++d) {
    result.shift[d] = static_cast<int>(tap.position[d] * p.dilation[d] - p.padding[d]);
  }
  return result;
}
__device__ __forceinline__ const uint16_t* x_at(const ConvParams& p, const Column& column, const PixelWalk& at) {
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

// Eight filters, and eight channels of a tap, at a time.
template <class Tile>
class VectorLoader {
 public:
  __device__ __forceinline__ VectorLoader(const ConvParams& p, const Part& part)
      : p_(p), step_(place_at(kTileK, p.y_size)), column_(column_at(p, part.group, part.n0 + Columns::row())) {
    const int64_t filter = part.m0 + Filters::row();
    filter_ = filter < p.group_filters()
                  ? static_cast<const uint16_t*>(p.y.data) + (part.group * p.group_filters() + filter) * p.y.stride[1]
                  : nullptr;
#pragma unroll
    for (int i = 0; i < Filters::kCount; ++i) {
      walks_[i] = PixelWalk(p, part.first + Filters::k(i), part.end);
    }
  }

  __device__ __forceinline__ void start(unsigned char* a_tile, unsigned char* b_tile) {
#pragma unroll
    for (int i = 0; i < Filters::kCount; ++i) {
      start_chunk(a_tile + chunk_offset<false, Tile::kM>(Filters::row(), Filters::k(i)),
                  filter_ == nullptr ? nullptr : y_at(p_, filter_, walks_[i]), static_cast<const uint16_t*>(p_.y.data));
      start_chunk(b_tile + chunk_offset<false, Tile::kN>(Columns::row(), Columns::k(i)), x_at(p_, column_, walks_[i]),
                  static_cast<const uint16_t*>(p_.x.data));
      walks_[i].advance(p_, kTileK, step_);
    }
  }

 private:
  using Filters = AcrossShare<Tile::kM, Tile::kThreads>;
  using Columns = AcrossShare<Tile::kN, Tile::kThreads>;
  static_assert(Filters::kStep == Columns::kStep, "one walk serves both operands");
  const ConvParams& p_;
  const ConvPlace step_;
  const uint16_t* filter_;
  Column column_;
  PixelWalk walks_[Filters::kCount];
};

// Element by element.
template <class Tile>
class RunLoader {
 public:
  __device__ __forceinline__ RunLoader(const ConvParams& p, const Part& part)
      : p_(p),
        one_(place_at(1, p.y_size)),
        rest_(place_at(kTileK - Share::kLength, p.y_size)),
        column_(column_at(p, part.group, part.n0 + Share::row())),
        y_(p, part.first + Share::k(), part.end),
        x_(p, part.first + Share::k(), part.end) {
    const int64_t filter = part.m0 + Share::row();
    filter_ = filter < p.group_filters()
                  ? static_cast<const uint16_t*>(p.y.data) + (part.group * p.group_filters() + filter) * p.y.stride[1]
                  : nullptr;
  }

  __device__ __forceinline__ void start(unsigned char* a_tile, unsigned char* b_tile) {
    write_run<Tile::kM, Share::kLength>(a_tile, Share::row(), Share::k(), [&] {
      const uint32_t bits = bits_or_zero(filter_ == nullptr ? nullptr : y_at(p_, filter_, y_));
      y_.advance(p_, 1, one_);
      return bits;
    });
    y_.advance(p_, kTileK - Share::kLength, rest_);
    write_run<Tile::kN, Share::kLength>(b_tile, Share::row(), Share::k(), [&] {
      const uint32_t bits = bits_or_zero(x_at(p_, column_, x_));
      x_.advance(p_, 1, one_);
      return bits;
    });
    x_.advance(p_, kTileK - Share::kLength, rest_);
  }

 private:
  using Share = RunShare<Tile::kM, Tile::kThreads>;
  static_assert(Tile::kM == Tile::kN, "one share serves both operands");
  const ConvParams& p_;
  const ConvPlace one_, rest_;
  const uint16_t* filter_;
  Column column_;
  PixelWalk y_, x_;
};

// machine code: true>: HMMA.16816.F32, LDSM.4, LDGSTS.128; else: HMMA.16816.F32, LDSM.4
template <class T, class Tile, bool kVectors>
__global__ void __launch_bounds__(Tile::kThreads) conv_wgrad_mma_kernel(const WgradParams params) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const ConvParams& p = params.conv;
  const int64_t filters = p.group_filters(), columns = p.group_channels() * p.taps(), pixels = p.y_pixels();
  const int64_t tiles = tiles_of<Tile::kM, Tile::kN>(filters, columns);
  const int64_t split = blockIdx.x / (tiles * p.groups), group = blockIdx.x / tiles % p.groups;
  const MatrixTile at = banded_tile<Tile::kM, Tile::kN>(blockIdx.x % tiles, filters, columns);
  const int64_t steps = mma_steps(pixels);
  const int64_t first = steps * split / params.splits, last = steps * (split + 1) / params.splits;
  using Loader = std::conditional_t<kVectors, VectorLoader<Tile>, RunLoader<Tile>>;
  Loader loader(p, Part{group, at.m0, at.n0, first * kTileK, pixels});
  const auto start = [&](unsigned char* a_tile, unsigned char* b_tile, int64_t) { loader.start(a_tile, b_tile); };
  const float* const staged = mma_sums<T, Tile, !kVectors, !kVectors>(shared, first, last, start);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kM * Tile::kN; i += Tile::kThreads) {
    const int64_t row = at.m0 + i / Tile::kN, column = at.n0 + i % Tile::kN;
    if (row >= filters || column >= columns) continue;
    const float sum = staged[i / Tile::kN * Tile::kStagedColumns + i % Tile::kN];
    const int64_t filter = group * filters + row;
    if (params.partials != nullptr) {
      params.partials[(split * p.filters + filter) * columns + column] = sum;
    } else {
      store_weight<T>(p, filter, column, sum);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

template <class T>
void launch_wgrad(const WgradParams& params, bool large, bool vectors, Stream stream) {
  const ConvParams& p = params.conv;
  const auto with_tile = [&](auto tile) {
    using Tile = decltype(tile);
    const int64_t tiles = tiles_of<Tile::kM, Tile::kN>(p.group_filters(), p.group_channels() * p.taps());
    const int64_t blocks = tiles * p.groups * params.splits;
    if (blocks == 0) return;
    const auto kernel = vectors ? conv_wgrad_mma_kernel<T, Tile, true> : conv_wgrad_mma_kernel<T, Tile, false>;
    const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), stream, Tile::kSharedBytes};
    launch("conv_wgrad_mma", kernel, config, params);
  };
  large ? with_tile(Large{}) : with_tile(Middle{});
  if (params.splits > 1) reduce_wgrad(params, stream);
}

bool takes_large(const ConvParams& p) {
  return p.group_filters() > Middle::kM && p.group_channels() * p.taps() > Middle::kN;
}

}  // namespace

int conv_wgrad_mma_splits(const ConvParams& p) {
  const int64_t columns = p.group_channels() * p.taps(), filters = p.group_filters();
  const int64_t tiles = p.groups * (takes_large(p) ? tiles_of<Large::kM, Large::kN>(filters, columns)
                                                   : tiles_of<Middle::kM, Middle::kN>(filters, columns));
  if (tiles == 0) return 1;
  // Some 256 blocks, and no part shorter than kLeastSteps, or the partials cost what the parts save.
  constexpr int64_t kBlocks = 256, kLeastSteps = 16;
  const int64_t steps = (p.y_pixels() + kTileK - 1) / kTileK;
  return allowed_splits(p, std::min(kBlocks / tiles, steps / kLeastSteps));
}

void conv_wgrad_mma(const ConvParams& p, float* partials, int splits, Stream stream) {
  const WgradParams params{p, splits > 1 ? partials : nullptr, splits};
  const bool vectors = in_chunks(p.y, p.group_filters()) && in_chunks(p.x, p.group_channels());
  if (p.dtype == DType::kFloat16) return launch_wgrad<__half>(params, takes_large(p), vectors, stream);
  launch_wgrad<__nv_bfloat16>(params, takes_large(p), vectors, stream);
}

}  // namespace warpwright::cuda
