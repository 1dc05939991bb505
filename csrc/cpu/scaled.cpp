// Products of 8-bit matrices on the CPU, by the tiles of byte_product.h: the words of `input` lie row by row, those of
// `other` in panels. Sums of a step are scaled, where they are float32, and added to the tile's.

#include "kernels/scaled.h"

#include <type_traits>

#include "cpu/activation.h"
#include "cpu/byte_product.h"
#include "cpu/parallel.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// ---- a tile ----

struct Tile {
  int64_t row0, col0, rows, cols;
};

// Rows [first, first + rows) of an operand, bytes [k0, k0 + terms) of each, as words row by row.
template <class Words>
void expand_rows(const Words& words, typename Words::Word* to, const Rows& operand, int64_t first, int64_t rows,
                 int64_t k0, int64_t terms) {
  uint8_t gathered[kStep];
  Rows from = operand;
  from.data = static_cast<uint8_t*>(operand.data) + k0 * operand.col_stride;
  for (int64_t row = 0; row < rows; ++row) {
    words.expand(to + row * (kStep / Words::kTerms), row_data(from, first + row, terms, gathered), terms);
  }
}

// Columns [first, first + cols) of the product: as many rows of `other`, in panels; absent columns are zero.
template <class Words>
void expand_panels(const Words& words, typename Words::Word* to, const Rows& operand, int64_t first, int64_t cols,
                   int64_t k0, int64_t terms) {
  const uint8_t* const data = static_cast<const uint8_t*>(operand.data) + k0 * operand.col_stride;
  const int64_t count = (terms + Words::kTerms - 1) / Words::kTerms;
  for (int64_t panel = 0; panel < cols; panel += kPanel) {
    typename Words::Word* const start = to + panel * (kStep / Words::kTerms);
    for (int64_t col = 0; col < kPanel; ++col) {
      const uint8_t* const row = data + (panel + col < cols ? operand.offset(first + panel + col) : 0);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t k = i * Words::kTerms;
        start[i * kPanel + col] =
            panel + col < cols ? words.word(row + k * operand.col_stride, terms - k, operand.col_stride) : 0;
      }
    }
  }
}

// One step of k of the tile, added to its totals (kTileRows, kTileCols).
template <class Words>
void add_step(const ScaledMatmulParams& p, const Tile& tile, int64_t block, int64_t count,
              const typename Words::Word* a, const typename Words::Word* b, typename Words::Sum* totals) {
  using V = VecOfSum<typename Words::Sum>;
  constexpr int64_t kPitch = kStep / Words::kTerms;
  float column_scale[kTileCols];
  for (int64_t col = 0; col < tile.cols; ++col) {
    column_scale[col] = p.other_scale.by_block ? p.other_scale.at(tile.col0 + col, block) : 1.0f;
  }
  for (int64_t panel = 0; panel < tile.cols; panel += kPanel) {
    for (int64_t row0 = 0; row0 < tile.rows; row0 += kRows) {
      const int64_t rows = tile.rows - row0 < kRows ? tile.rows - row0 : kRows;
      V sums[kRows][kVectors];
      multiply<Words>(sums, a + row0 * kPitch, rows, b + panel * kPitch, count);
      for (int64_t r = 0; r < rows; ++r) {
        typename Words::Sum* const to = totals + (row0 + r) * kTileCols + panel;
        for (int v = 0; v < kVectors; ++v) {
          V total, addend = sums[r][v];
          std::memcpy(&total, to + v * kFloatLanes, sizeof(total));
          if constexpr (std::is_same_v<V, Vec<float>>) {
            if (p.input_scale.by_block) addend *= p.input_scale.at(tile.row0 + row0 + r, block);
            if (p.other_scale.by_block) addend *= load(column_scale + panel + v * kFloatLanes);
          }
          total += addend;
          std::memcpy(to + v * kFloatLanes, &total, sizeof(total));
        }
      }
    }
  }
}

// Scales that are constant along k, the addends and the activation. `scratch` has room for a row of a tile.
template <class T, class Sum>
void finish(const ScaledMatmulParams& p, const Tile& tile, const Sum* totals, T* scratch) {
  float column_scale[kTileCols];
  for (int64_t col = 0; col < tile.cols; ++col) {
    column_scale[col] = p.other_scale.by_block ? 1.0f : p.other_scale.at(tile.col0 + col, 0);
  }
  const T* const bias = p.bias == nullptr ? nullptr : static_cast<const T*>(p.bias) + tile.col0;
  Rows residual = p.residual;
  if (residual.data != nullptr) residual.data = static_cast<T*>(residual.data) + tile.col0 * residual.col_stride;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = tile.row0 + r;
    const float row_scale = p.input_scale.by_block ? 1.0f : p.input_scale.at(row, 0);
    const T* const addend = residual.data == nullptr ? nullptr : row_data(residual, row, tile.cols, scratch);
    T* const out = static_cast<T*>(p.output) + row * p.n + tile.col0;
    for_each_vector<float>(tile.cols, [&](int64_t i, auto n) {
      Vec<float> x = load_sums(totals + r * kTileCols + i) * row_scale * load(column_scale + i, n);
      if (bias != nullptr) x += load(bias + i, n);
      if (addend != nullptr) x += load(addend + i, n);
      store(out + i, activate<float>(p.activation, x), n);
    });
  }
}

template <class AWords, class BWords>
void multiply_tiles(const ScaledMatmulParams& p, int64_t tile_rows, int64_t begin, int64_t end) {
  using Sum = typename AWords::Sum;
  const AWords a_words;
  const BWords b_words;
  Scratch<typename AWords::Word> a(tile_rows * kStep / AWords::kTerms), b(kTileCols * kStep / BWords::kTerms);
  Scratch<Sum> totals(tile_rows * kTileCols);
  Scratch<float> row(kTileCols);  // As large as any output's.
  const int64_t across = (p.n + kTileCols - 1) / kTileCols;
  for (int64_t index = begin; index < end; ++index) {
    Tile tile{index / across * tile_rows, index % across * kTileCols, tile_rows, kTileCols};
    tile.rows = p.m - tile.row0 < tile_rows ? p.m - tile.row0 : tile_rows;
    tile.cols = p.n - tile.col0 < kTileCols ? p.n - tile.col0 : kTileCols;
    for (int64_t i = 0; i < tile_rows * kTileCols; ++i) totals.data()[i] = 0;
    for (int64_t k0 = 0; k0 < p.k; k0 += kStep) {
      const int64_t terms = p.k - k0 < kStep ? p.k - k0 : kStep;
      expand_rows(a_words, a.data(), p.input, tile.row0, tile.rows, k0, terms);
      expand_panels(b_words, b.data(), p.other, tile.col0, tile.cols, k0, terms);
      const int64_t count = (terms + AWords::kTerms - 1) / AWords::kTerms;
      add_step<AWords>(p, tile, k0 / kStep, count, a.data(), b.data(), totals.data());
    }
    visit_float(p.output_dtype, [&](auto tag) {
      using T = decltype(tag);
      if constexpr (sizeof(T) <= sizeof(float)) finish(p, tile, totals.data(), reinterpret_cast<T*>(row.data()));
    });
  }
}

}  // namespace

void scaled_matmul(const ScaledMatmulParams& p) {
  const int64_t tile_rows = p.m < kTileRows ? (p.m + kRows - 1) / kRows * kRows : kTileRows;
  const int64_t tiles = (p.m + tile_rows - 1) / tile_rows * ((p.n + kTileCols - 1) / kTileCols);
  const int64_t work = tile_rows * kTileCols * (p.k < 1 ? 1 : p.k);  // Of a tile, in products.
  const auto run = [&](auto a, auto b) {
    parallel_for(0, tiles, row_grain(work / kFloatLanes), [&](int64_t begin, int64_t end) {
      multiply_tiles<decltype(a), decltype(b)>(p, tile_rows, begin, end);
    });
  };
  if (p.input_dtype == DType::kInt8) return run(Int8Words{}, Int8Words{});
  visit_float8(p.input_dtype, [&](auto a) {
    visit_float8(p.other_dtype, [&](auto b) { run(Float8Words<decltype(a)>{}, Float8Words<decltype(b)>{}); });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(scaled_matmul, ScaledMatmulParams)
