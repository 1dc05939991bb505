// The forward product and the input's gradient on the tensor cores: cp.async or a gather through registers, ldmatrix,
// mma.sync, in the pipeline of tile/mma_tile.cuh.
//
// Both are one product of pixels with filters whose inner dimension is (tap, channel). What differs: where a tap leads
// (forward along the dilation, back along a phase's outputs), and which of the weight's dimensions is summed over.

#include <type_traits>

#include "cuda/conv/conv_mma.cuh"
#include "cuda/conv/epilogue.cuh"
#include "cuda/conv/operands.cuh"
#include "cuda/conv/statistics.cuh"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/tile/mma_tile.cuh"
#include "cuda/tile/scheduler.cuh"

namespace warpwright::cuda {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// CUDA kernels

using Large = LargeMmaTile;
using Middle = MmaTile<64, 64, 2, 2, 4>;

// One product: the pixels of a phase (of all positions, for the forward product) by the rows of a group's filters.
struct Product {
  PixelSource pixels;
  FilterSource filters;
  int channels, taps[kConvDims];                        // of the inner dimension
  int64_t rows;                                         // of pixels
  int64_t size[kConvDims];                              // the rows' positions
  int origin[kConvDims], origin_step[kConvDims];        // of a row in the source: origin + position * origin_step
  int64_t written[kConvDims], written_step[kConvDims];  // the same in what is written
};

__device__ __forceinline__ Product fprop_product(const ConvParams& p, int64_t group) {
  Product product{};
  product.pixels.data = static_cast<const uint16_t*>(p.x.data) + group * p.group_channels() * p.x.stride[1];
  product.pixels.image_stride = p.x.stride[0];
  product.pixels.channel_stride = p.x.stride[1];
  product.filters.data = static_cast<const uint16_t*>(p.w.data) + group * p.group_filters() * p.w.stride[0];
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

__device__ __forceinline__ Product dgrad_product(const ConvParams& p, int64_t group, const ConvPhase& phase) {
  Product product{};
  product.pixels.data = static_cast<const uint16_t*>(p.y.data) + group * p.group_filters() * p.y.stride[1];
  product.pixels.image_stride = p.y.stride[0];
  product.pixels.channel_stride = p.y.stride[1];
  product.filters.data = static_cast<const uint16_t*>(p.w.data) + group * p.group_filters() * p.w.stride[0];
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

__device__ __forceinline__ PixelRow pixel_row(const Product& product, int64_t row) {
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

// Starts a step's copies of eight channels at a time; the filters lie along K, or (kFiltersAlongK false) along rows.
template <class Tile, bool kFiltersAlongK>
class VectorLoader {
 public:
  __device__ __forceinline__ VectorLoader(const Product& product, int64_t m0, int64_t n0) : product_(product) {
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
      const uint16_t* from = inside ? pixel_at(product_.pixels, rows_[i], at_) : nullptr;
      start_chunk(a_tile + chunk_offset<true, Tile::kM>(Pixels::row(i), Pixels::k()), from, product_.pixels.data);
    }
    if constexpr (kFiltersAlongK) {
#pragma unroll
      for (int i = 0; i < Filters::kCount; ++i) {
        const int row = filter_ + i * Filters::kRowsAtOnce;
        const bool there = inside && row < product_.filters.rows;
        start_chunk(b_tile + chunk_offset<true, Tile::kN>(Filters::row(i), Filters::k()),
                    there ? filter_at(product_.filters, row, at_) : nullptr, product_.filters.data);
      }
    } else {
#pragma unroll
      for (int i = 0; i < Across::kCount; ++i) {
        const bool there = across_[i].inside(product_.taps) && filter_ < product_.filters.rows;
        start_chunk(b_tile + chunk_offset<false, Tile::kN>(Across::row(), Across::k(i)),
                    there ? filter_at(product_.filters, filter_, across_[i]) : nullptr, product_.filters.data);
        across_[i].advance(kTileK, product_.channels, product_.taps);
      }
    }
    at_.advance(kTileK, product_.channels, product_.taps);
  }

 private:
  using Pixels = VectorShare<Tile::kM, Tile::kThreads>;
  using Filters = VectorShare<Tile::kN, Tile::kThreads>;
  using Across = AcrossShare<Tile::kN, Tile::kThreads>;
  const Product& product_;
  TapWalk at_, across_[Across::kCount];
  PixelRow rows_[Pixels::kCount];
  int filter_;
};

// Reads element by element.
template <class Tile>
class RunLoader {
 public:
  __device__ __forceinline__ RunLoader(const Product& product, int64_t m0, int64_t n0)
      : product_(product), row_(pixel_row(product, m0 + Pixels::row())), filter_(n0 + Filters::row()) {
    pixel_.advance(Pixels::k(), product.channels, product.taps);
    weight_.advance(Filters::k(), product.channels, product.taps);
  }

  __device__ __forceinline__ void start(unsigned char* a_tile, unsigned char* b_tile) {
    write_run<Tile::kM, Pixels::kLength>(a_tile, Pixels::row(), Pixels::k(), [&] {
      const bool inside = pixel_.inside(product_.taps);
      const uint32_t bits = bits_or_zero(inside ? pixel_at(product_.pixels, row_, pixel_) : nullptr);
      pixel_.advance(1, product_.channels, product_.taps);
      return bits;
    });
    pixel_.advance(kTileK - Pixels::kLength, product_.channels, product_.taps);
    write_run<Tile::kN, Filters::kLength>(b_tile, Filters::row(), Filters::k(), [&] {
      const bool inside = weight_.inside(product_.taps) && filter_ < product_.filters.rows;
      const uint32_t bits = bits_or_zero(inside ? filter_at(product_.filters, filter_, weight_) : nullptr);
      weight_.advance(1, product_.channels, product_.taps);
      return bits;
    });
    weight_.advance(kTileK - Filters::kLength, product_.channels, product_.taps);
  }

 private:
  using Pixels = RunShare<Tile::kM, Tile::kThreads>;
  using Filters = RunShare<Tile::kN, Tile::kThreads>;
  const Product& product_;
  TapWalk pixel_, weight_;
  PixelRow row_;
  int64_t filter_;
};

// Finishes the sums of a tile. Neighbouring threads take neighbouring channels where those lie together, else pixels.
template <class T, class Tile>
__device__ __forceinline__ void store_tile(const ConvParams& p, const ConvTensor& output, const Product& product,
                                           const float* staged, int64_t m0, int64_t n0, int64_t first_channel) {
  const bool channels_together = output.stride[1] == 1;
  constexpr int kColumns = 8;  // of a thread at a time: a row's place is worked out once for them.
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
    store_channels<T, kColumns>(p, output, place, first_channel + n0 + col, staged + row * Tile::kStagedColumns + col,
                                left < kColumns ? static_cast<int>(left) : kColumns);
  }
}

// The sums of a tile, as mma_sums has them.
template <class T, class Tile, bool kVectors, bool kFiltersAlongK>
__device__ __forceinline__ const float* multiply(const Product& product, const MatrixTile& at) {
  WARPWRIGHT_DYNAMIC_SHARED(shared);
  const int64_t k = static_cast<int64_t>(product.channels) * product.taps[0] * product.taps[1] * product.taps[2];
  using Loader = std::conditional_t<kVectors, VectorLoader<Tile, kFiltersAlongK>, RunLoader<Tile>>;
  Loader loader(product, at.m0, at.n0);
  const auto start = [&](unsigned char* a_tile, unsigned char* b_tile, int64_t) { loader.start(a_tile, b_tile); };
  return mma_sums < T, Tile, true, kFiltersAlongK || !kVectors > (shared, 0, mma_steps(k), start);
}

// A variant of its own finds the statistics: a branch would cost the others registers.
// machine code: true>: HMMA.16816.F32, LDSM.4, LDGSTS.128, STG.128; else: HMMA.16816.F32, LDSM.4, STG.128
template <class T, class Tile, bool kMeasures, bool kVectors>
__global__ void __launch_bounds__(Tile::kThreads) conv_fprop_mma_kernel(const ConvParams p) {
  const int64_t tiles = tiles_of<Tile::kM, Tile::kN>(p.y_pixels(), p.group_filters());
  const int64_t group = blockIdx.x / tiles, first_filter = group * p.group_filters();
  const Product product = fprop_product(p, group);
  const MatrixTile at = banded_tile<Tile::kM, Tile::kN>(blockIdx.x % tiles, product.rows, product.filters.rows);
  const float* const staged = multiply<T, Tile, kVectors, true>(product, at);
  store_tile<T, Tile>(p, p.y, product, staged, at.m0, at.n0, first_filter);
  if constexpr (kMeasures) {
    const int64_t left = product.rows - at.m0;
    store_statistics<T, Tile>(p, staged, left < Tile::kM ? static_cast<int>(left) : Tile::kM, at.m0 / Tile::kM,
                              first_filter + at.n0, product.filters.rows - at.n0);
  }
}

// machine code: true>: HMMA.16816.F32, LDSM.4, LDGSTS.128, STG.128; else: HMMA.16816.F32, LDSM.4, STG.128
template <class T, class Tile, bool kVectors>
__global__ void __launch_bounds__(Tile::kThreads) conv_dgrad_mma_kernel(const ConvParams p) {
  const int64_t most = tiles_of<Tile::kM, Tile::kN>(most_phase_pixels(p), p.group_channels());
  const int64_t phases = conv_phases(p), group = blockIdx.x / (most * phases), tile = blockIdx.x % most;
  const Product product = dgrad_product(p, group, phase_at(p, blockIdx.x / most % phases));
  if (tile >= tiles_of<Tile::kM, Tile::kN>(product.rows, product.filters.rows)) return;
  const MatrixTile at = banded_tile<Tile::kM, Tile::kN>(tile, product.rows, product.filters.rows);
  const float* const staged = multiply<T, Tile, kVectors, false>(product, at);
  store_tile<T, Tile>(p, p.x, product, staged, at.m0, at.n0, group * p.group_channels());
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernel launchers

// A large tile where half of the multiprocessors or more get one, else the middle one.
bool takes_large(int64_t products, int64_t m, int64_t n) {
  return n > Middle::kN && 2 * products * tiles_of<Large::kM, Large::kN>(m, n) >= current_device().multiprocessors;
}

template <template <class, class, bool> class Kernel, class T>
void launch_product(const char* name, const ConvParams& params, bool vectors, int64_t products, int64_t m, int64_t n,
                    Stream stream) {
  const auto with_tile = [&](auto tile) {
    using Tile = decltype(tile);
    const int64_t blocks = products * tiles_of<Tile::kM, Tile::kN>(m, n);
    if (blocks == 0) return;
    const auto kernel = vectors ? Kernel<T, Tile, true>::function : Kernel<T, Tile, false>::function;
    const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), stream, Tile::kSharedBytes};
    launch(name, kernel, config, params);
  };
  takes_large(products, m, n) ? with_tile(Large{}) : with_tile(Middle{});
}

template <class T, class Tile, bool kVectors>
struct Fprop {
  static constexpr auto function = conv_fprop_mma_kernel<T, Tile, false, kVectors>;
};
template <class T, class Tile, bool kVectors>
struct MeasuredFprop {
  static constexpr auto function = conv_fprop_mma_kernel<T, Tile, true, kVectors>;
};
template <class T, class Tile, bool kVectors>
struct Dgrad {
  static constexpr auto function = conv_dgrad_mma_kernel<T, Tile, kVectors>;
};

}  // namespace

bool conv_mma_takes(const ConvParams& p) {
  const bool half = p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16;
  return half && p.group_channels() * p.group_filters() >= 2 * kChunk;
}

int64_t conv_fprop_mma_rows(const ConvParams& p) {
  return takes_large(p.groups, p.y_pixels(), p.group_filters()) ? Large::kM : Middle::kM;
}

void conv_fprop_mma(const ConvParams& p, Stream stream) {
  const bool vectors = in_chunks(p.x, p.group_channels()) && in_chunks(p.w, p.group_channels());
  const int64_t m = p.y_pixels(), n = p.group_filters();
  const auto launch_for = [&](auto tag) {
    using T = decltype(tag);
    if (p.mean_partials == nullptr) {
      launch_product<Fprop, T>("conv_fprop_mma", p, vectors, p.groups, m, n, stream);
    } else {
      launch_product<MeasuredFprop, T>("conv_fprop_measured_mma", p, vectors, p.groups, m, n, stream);
    }
  };
  p.dtype == DType::kFloat16 ? launch_for(__half{}) : launch_for(__nv_bfloat16{});
}

void conv_dgrad_mma(const ConvParams& p, Stream stream) {
  const bool vectors = in_chunks(p.y, p.group_filters()) && in_chunks(p.w, p.group_channels());
  const int64_t products = p.groups * conv_phases(p), m = most_phase_pixels(p), n = p.group_channels();
  if (p.dtype == DType::kFloat16)
    return launch_product<Dgrad, __half>("conv_dgrad_mma", p, vectors, products, m, n, stream);
  launch_product<Dgrad, __nv_bfloat16>("conv_dgrad_mma", p, vectors, products, m, n, stream);
}

}  // namespace warpwright::cuda
