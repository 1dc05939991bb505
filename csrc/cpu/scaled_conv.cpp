// Convolutions of 8-bit tensors on the CPU: products of pixels with filters, whose inner dimension is (tap, channel),
// by the tiles of byte_product.h. The filters' words are made once, in panels; a pixel's bytes are gathered for each
// step, runs of channels at a time. With one channel and one filter a group there is nothing to multiply: there the
// lanes are channels, and sums run over the taps.

#include "kernels/scaled_conv.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/scaled_conv_tile.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// ---- where filters reach ----

// A tap's place, in elements of x from the one that the first tap meets.
struct Tap {
  int64_t reach[kConvDims], offset;
};

struct Taps {
  explicit Taps(const ConvParams& p)
      : p(p),
        places(p.taps()),
        rows_together(p.groups == 1 && p.dilation[2] == 1 && p.x.stride[1] == 1 && p.x.stride[4] == p.channels) {
    for (int64_t t = 0; t < p.taps(); ++t) {
      Tap& tap = places.data()[t];
      tap.offset = 0;
      int64_t rest = t;
      for (int d = kConvDims - 1; d >= 0; --d) {
        tap.reach[d] = rest % p.kernel[d] * p.dilation[d];
        tap.offset += tap.reach[d] * p.x.stride[2 + d];
        rest /= p.kernel[d];
      }
    }
  }

  const ConvParams& p;
  Scratch<Tap> places;
  bool rows_together;  // Whether the elements that a row of taps meets lie one after the other.
};

// What one pixel of y reads.
class Window {
 public:
  Window(const Taps& taps, const ConvPixel& pixel) : taps_(taps) {
    const ConvParams& p = taps.p;
    offset_ = pixel.image * p.x.stride[0];
    for (int d = 0; d < kConvDims; ++d) {
      origin_[d] = pixel.position[d] * p.stride[d] - p.padding[d];
      offset_ += origin_[d] * p.x.stride[2 + d];
    }
  }
  // The byte of `channel` that tap t meets, null in the padding.
  const uint8_t* at(int64_t t, int64_t channel) const {
    const ConvParams& p = taps_.p;
    const Tap& tap = taps_.places.data()[t];
    for (int d = 0; d < kConvDims; ++d) {
      const int64_t i = origin_[d] + tap.reach[d];
      if (i < 0 || i >= p.x_size[d]) return nullptr;
    }
    return static_cast<const uint8_t*>(p.x.data) + offset_ + tap.offset + channel * p.x.stride[1];
  }
  // Elements [k0, k0 + count) of (tap, channel), of the group whose first channel this is: where they lie, or gathered.
  const uint8_t* elements(int64_t channel0, int64_t k0, int64_t count, uint8_t* gathered) const {
    const ConvParams& p = taps_.p;
    const bool rows = taps_.rows_together && origin_[2] >= 0 && origin_[2] + p.kernel[2] <= p.x_size[2];
    const int64_t taps = rows ? p.kernel[2] : 1, length = taps * p.group_channels(), step = p.x.stride[1];
    int64_t t = k0 / length * taps, first = k0 % length;  // Of a run of taps.
    for (int64_t done = 0; done < count; t += taps, first = 0) {
      const int64_t run = std::min(length - first, count - done);
      const uint8_t* const from = at(t, channel0 + first);
      if (from != nullptr && run == count && step == 1) return from;
      if (from == nullptr) {
        std::memset(gathered + done, 0, run);
      } else if (step == 1) {
        std::memcpy(gathered + done, from, run);
      } else {
        for (int64_t i = 0; i < run; ++i) gathered[done + i] = from[i * step];
      }
      done += run;
    }
    return gathered;
  }

 private:
  const Taps& taps_;
  int64_t origin_[kConvDims], offset_;
};

// The filter's bytes through tap t, of its first channel on.
const uint8_t* weights_at(const ConvParams& p, int64_t filter, int64_t t) {
  int64_t offset = filter * p.w.stride[0];
  for (int d = kConvDims - 1; d >= 0; --d) {
    offset += t % p.kernel[d] * p.w.stride[2 + d];
    t /= p.kernel[d];
  }
  return static_cast<const uint8_t*>(p.w.data) + offset;
}

// ---- products ----

// The filters as words: (groups, panels, steps, words of a step, kPanel), zeros for absent filters.
template <class Words>
class Panels {
 public:
  explicit Panels(const ConvParams& p)
      : k_(p.group_channels() * p.taps()),
        steps_((k_ + kStep - 1) / kStep),
        panels_((p.group_filters() + kPanel - 1) / kPanel),
        words_(p.groups * panels_ * steps_ * kStepWords) {
    const Words words;
    parallel_for(0, p.groups * panels_, row_grain(k_ * kPanel), [&](int64_t begin, int64_t end) {
      Scratch<uint8_t> line(k_);
      for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t col = 0; col < kPanel; ++col) pack(p, words, panel, col, line.data());
      }
    });
  }
  int64_t k() const { return k_; }
  int64_t steps() const { return steps_; }
  const typename Words::Word* step(int64_t group, int64_t panel, int64_t step) const {
    return words_.data() + ((group * panels_ + panel) * steps_ + step) * kStepWords;
  }

 private:
  static constexpr int64_t kStepWords = kStep / Words::kTerms * kPanel;

  void pack(const ConvParams& p, const Words& words, int64_t panel, int64_t col, uint8_t* line) {
    const int64_t group = panel / panels_, filter = panel % panels_ * kPanel + col;
    const bool there = filter < p.group_filters();
    for (int64_t t = 0; there && t < p.taps(); ++t) {
      const uint8_t* const from = weights_at(p, group * p.group_filters() + filter, t);
      for (int64_t c = 0; c < p.group_channels(); ++c) line[t * p.group_channels() + c] = from[c * p.w.stride[1]];
    }
    typename Words::Word* const to = words_.data() + panel * steps_ * kStepWords + col;
    for (int64_t k = 0; k < k_; k += Words::kTerms) {
      to[k / Words::kTerms * kPanel] = there ? words.word(line + k, k_ - k, 1) : 0;
    }
  }

  int64_t k_, steps_, panels_;
  Scratch<typename Words::Word> words_;
};

// totals (kTileRows, kTileCols) of a tile of one group. `words` has room for a step of its rows.
template <class AWords, class BWords>
void sum_products(const Taps& taps, const AWords& format, const Panels<BWords>& panels, const ConvTile& tile,
                  typename AWords::Word* words, typename AWords::Sum* totals) {
  using V = VecOfSum<typename AWords::Sum>;
  constexpr int64_t kPitch = kStep / AWords::kTerms;
  const ConvParams& p = taps.p;
  const int64_t group = tile.filter0 / p.group_filters(), panel0 = tile.filter0 % p.group_filters() / kPanel;
  std::memset(totals, 0, sizeof(*totals) * tile.rows * kTileCols);
  for (int64_t step = 0; step < panels.steps(); ++step) {
    const int64_t k0 = step * kStep, terms = std::min(kStep, panels.k() - k0);
    ConvPixel pixel = ConvPixel::at(p, tile.row0);
    for (int64_t row = 0; row < tile.rows; ++row, pixel.advance(p)) {
      uint8_t gathered[kStep];
      const Window window(taps, pixel);
      format.expand(words + row * kPitch, window.elements(group * p.group_channels(), k0, terms, gathered), terms);
    }
    const int64_t count = (terms + AWords::kTerms - 1) / AWords::kTerms;
    for (int64_t panel = 0; panel * kPanel < tile.cols; ++panel) {
      for (int64_t row0 = 0; row0 < tile.rows; row0 += kRows) {
        const int64_t rows = std::min<int64_t>(kRows, tile.rows - row0);
        V sums[kRows][kVectors];
        multiply<AWords>(sums, words + row0 * kPitch, rows, panels.step(group, panel0 + panel, step), count);
        for (int64_t r = 0; r < rows; ++r) {
          auto* const to = totals + (row0 + r) * kTileCols + panel * kPanel;
          V total[kVectors];
          std::memcpy(total, to, sizeof(total));
          for (int v = 0; v < kVectors; ++v) total[v] += sums[r][v];
          std::memcpy(to, total, sizeof(total));
        }
      }
    }
  }
}

template <class AWords, class BWords>
void multiply_tiles(const ScaledConvParams& params) {
  const ConvParams& p = params.conv;
  const Taps taps(p);
  const AWords format;
  const Panels<BWords> panels(p);
  const int64_t pixels = p.y_pixels(), most = std::min(kTileRows, (pixels + kRows - 1) / kRows * kRows);
  const int64_t across = (p.group_filters() + kTileCols - 1) / kTileCols;
  const int64_t tiles = (pixels + most - 1) / most * p.groups * across;
  const int64_t work = most * std::min(kTileCols, p.group_filters()) * std::max<int64_t>(panels.k(), 1);
  parallel_for(0, tiles, row_grain(work / kFloatLanes), [&](int64_t begin, int64_t end) {
    Scratch<typename AWords::Word> words(most * kStep / AWords::kTerms);
    Scratch<typename AWords::Sum> totals(most * kTileCols);
    Scratch<float> values(most * kTileCols);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t group = index / across % p.groups, col0 = index % across * kTileCols;
      ConvTile tile{index / across / p.groups * most, most, group * p.group_filters() + col0, kTileCols};
      tile.rows = std::min(most, pixels - tile.row0);
      tile.cols = std::min(kTileCols, p.group_filters() - col0);
      sum_products(taps, format, panels, tile, words.data(), totals.data());
      finish_sums(params, tile, totals.data(), values.data());
      store_values(params, tile, values.data());
    }
  });
}

// ---- one channel and one filter a group ----

template <class Words, class N>
VecOfSum<typename Words::Sum> channel_lanes(const uint8_t* bytes, N count) {
  if constexpr (std::is_same_v<Words, Int8Words>)
    return as_integers(load_bytes(bytes, count));
  else
    return load_stored(reinterpret_cast<const Float8<typename Words::Format>*>(bytes), count);
}

// What a tap inside of the image meets, and its weights: of the tile's first channel.
template <class Sum>
struct MetTap {
  const uint8_t* from;
  const Sum* weights;
};

// totals (rows, kTileCols) of a tile; weights (taps, pitch). `met` has room for all taps.
template <class Words>
void sum_taps(const Taps& taps, const typename Words::Sum* weights, int64_t pitch, const ConvTile& tile,
              MetTap<typename Words::Sum>* met, typename Words::Sum* totals) {
  using V = VecOfSum<typename Words::Sum>;
  const ConvParams& p = taps.p;
  ConvPixel pixel = ConvPixel::at(p, tile.row0);
  for (int64_t row = 0; row < tile.rows; ++row, pixel.advance(p)) {
    const Window window(taps, pixel);
    int64_t count = 0;
    for (int64_t t = 0; t < p.taps(); ++t) {
      const uint8_t* const from = window.at(t, tile.filter0);
      if (from != nullptr) met[count++] = {from, weights + t * pitch + tile.filter0};
    }
    for_each_vector<float>(tile.cols, [&](int64_t i, auto n) {
      V total{};
      // Part by part: one long sum rounds more than the sum of shorter ones.
      for (int64_t first = 0; first < count; first += kStep) {
        V sum{};
        for (int64_t t = first; t < std::min(first + kStep, count); ++t) {
          V w;
          std::memcpy(&w, met[t].weights + i, sizeof(w));
          sum += channel_lanes<Words>(met[t].from + i, n) * w;
        }
        total += sum;
      }
      std::memcpy(totals + row * kTileCols + i, &total, sizeof(total));
    });
  }
}

template <class AWords, class BWords>
void slide_filters(const ScaledConvParams& params) {
  using Sum = typename AWords::Sum;
  const ConvParams& p = params.conv;
  const Taps taps(p);
  const BWords format;
  const int64_t pitch = p.filters + kFloatLanes;  // A vector may reach past the last filter.
  Scratch<Sum> weights(p.taps() * pitch);
  for (int64_t t = 0; t < p.taps(); ++t) {
    for (int64_t filter = 0; filter < pitch; ++filter) {
      const uint8_t byte = filter < p.filters ? *weights_at(p, filter, t) : 0;
      if constexpr (std::is_same_v<Sum, float>)
        weights.data()[t * pitch + filter] = format.table[byte];
      else
        weights.data()[t * pitch + filter] = static_cast<int8_t>(byte);
    }
  }
  constexpr int64_t kTall = 64;
  const int64_t pixels = p.y_pixels(), across = (p.filters + kTileCols - 1) / kTileCols;
  const int64_t tiles = (pixels + kTall - 1) / kTall * across, work = kTall * kTileCols * p.taps();
  parallel_for(0, tiles, row_grain(work / kFloatLanes), [&](int64_t begin, int64_t end) {
    Scratch<MetTap<Sum>> met(p.taps());
    Scratch<Sum> totals(kTall * kTileCols);
    Scratch<float> values(kTall * kTileCols);
    for (int64_t index = begin; index < end; ++index) {
      ConvTile tile{index / across * kTall, kTall, index % across * kTileCols, kTileCols};
      tile.rows = std::min(kTall, pixels - tile.row0);
      tile.cols = std::min(kTileCols, p.filters - tile.filter0);
      sum_taps<AWords>(taps, weights.data(), pitch, tile, met.data(), totals.data());
      finish_sums(params, tile, totals.data(), values.data());
      store_values(params, tile, values.data());
    }
  });
}

}  // namespace

void scaled_convolution(const ScaledConvParams& p) {
  const bool depthwise = p.conv.group_channels() == 1 && p.conv.group_filters() == 1;
  const auto run = [&](auto a, auto b) {
    using A = typename decltype(a)::type;
    using B = typename decltype(b)::type;
    depthwise ? slide_filters<A, B>(p) : multiply_tiles<A, B>(p);
  };
  if (p.input_dtype == DType::kInt8) return run(std::type_identity<Int8Words>{}, std::type_identity<Int8Words>{});
  visit_float8(p.input_dtype, [&](auto a) {
    visit_float8(p.weight_dtype, [&](auto b) {
      run(std::type_identity<Float8Words<decltype(a)>>{}, std::type_identity<Float8Words<decltype(b)>>{});
    });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(scaled_convolution, ScaledConvParams)
