// Depthwise convolution on the CPU. A vector is a pixel's neighbouring channels, in either memory format: a tile of an
// image is first gathered into scratch memory, in float32, with zeros beside its columns, then each output is a chain
// of multiply-adds in a register. Channels first pays a transpose of registers each way for loads that are all aligned,
// no part of a vector lost at the end of a short row, and filters larger than the image that skip what they do not
// meet.
//
// All three passes are the same loop, multiply: eight sums share one operand and walk over the other. The input's
// gradient with a stride is written phase by phase: the positions that the same taps reach.

#include "kernels/depthwise.h"

#include <algorithm>
#include <numeric>

#include "cpu/activation.h"
#include "cpu/partials.h"

WARPWRIGHT_ISA_BEGIN

namespace {

constexpr int kSums = 8;                    // Sums in registers at a time: hides the latency of a multiply-add.
constexpr int64_t kTileColumns = 128;       // Of a tile of the output.
constexpr int64_t kTileBytes = 192 * 1024;  // Of a tile's input, to lie in the second-level cache.
constexpr int64_t kSummedProducts = 256;    // The weight's gradient adds this many up before they join the total.

// By 1, mostly, which a test finds sooner than a division.
int64_t floor_div(int64_t a, int64_t b) { return b == 1 ? a : a >= 0 ? a / b : -((-a + b - 1) / b); }
int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

// ---- scratch memory: (rows, columns, lanes), a vector's channels each ----

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Memory of vectors, each in one line of the cache.
template <class A>
class VectorScratch {
 public:
  explicit VectorScratch(int64_t vectors) : scratch_((vectors + 1) * kLanes<A>) {}
  A* data() const {
    const auto address = reinterpret_cast<uintptr_t>(scratch_.data());
    return reinterpret_cast<A*>((address + kVectorBytes - 1) / kVectorBytes * kVectorBytes);
  }

 private:
  Scratch<A> scratch_;
};

// Lane i of rows[j] becomes lane j of rows[i]: squares of kStep rows swap their off-diagonal quarters.
template <class A, int kStep, int... kLane>
__attribute__((always_inline)) inline void swap_quarters(Vec<A>* rows, std::integer_sequence<int, kLane...>) {
  constexpr int kCount = sizeof...(kLane);
  typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> Index __attribute__((vector_size(kVectorBytes)));
  for (int i = 0; i < kCount; ++i) {
    if (i & kStep) continue;
    const Vec<A> a = rows[i], b = rows[i + kStep];
    rows[i] = __builtin_shuffle(a, b, Index{(kLane & kStep ? kCount + kLane - kStep : kLane)...});
    rows[i + kStep] = __builtin_shuffle(a, b, Index{(kLane & kStep ? kCount + kLane : kLane + kStep)...});
  }
}
template <class A, int kStep = kLanes<A> / 2>
__attribute__((always_inline)) inline void transpose(Vec<A>* rows) {
  swap_quarters<A, kStep>(rows, std::make_integer_sequence<int, int(kLanes<A>)>{});
  if constexpr (kStep > 1) transpose<A, kStep / 2>(rows);
}

// Some neighbouring channels of an image.
template <class T>
struct Block {
  T* data;
  int64_t channels;        // At most a vector of them.
  int64_t pixel, channel;  // Strides.
  int64_t height, width;

  T* at(int64_t row, int64_t column) const { return data + (row * width + column) * pixel; }
};

template <class T>
Block<T> block_of(const DepthwiseParams& p, T* tensor, int64_t image, int64_t channel, int64_t height, int64_t width) {
  const int64_t pixels = height * width, rest = p.channels - channel;
  Block<T> block{tensor,
                 std::min(rest, kLanes<acc_t<std::remove_const_t<T>>>),
                 p.channels_last ? p.channels : 1,
                 p.channels_last ? 1 : pixels,
                 height,
                 width};
  if (tensor != nullptr) block.data += image * p.channels * pixels + channel * block.channel;
  return block;
}

// Calls body(pointer, pixels, row) for a rectangle's runs of pixels that follow each other in memory: a run of
// whole rows goes on from row to row.
template <class T, class Body>
void for_each_run(const Block<T>& block, Range rows, Range columns, const Body& body) {
  if (columns.size() == block.width) return body(block.at(rows.begin, 0), rows.size() * block.width, rows.begin);
  for (int64_t row = rows.begin; row < rows.end; ++row) body(block.at(row, columns.begin), columns.size(), row);
}

// `rows` lie in the image; of `columns` those outside are zeros.
template <class T>
void gather(const Block<const T>& block, Range rows, Range columns, acc_t<T>* scratch) {
  using A = acc_t<T>;
  constexpr int64_t kLane = kLanes<A>;
  const Range inside{std::max<int64_t>(columns.begin, 0), std::min(columns.end, block.width)};
  const int64_t before = std::min(inside.begin, columns.end) - columns.begin, pitch = columns.size();
  const int64_t width = std::max<int64_t>(inside.size(), 0), after = pitch - before - width;
  for (int64_t row = 0; row < rows.size(); ++row) {
    A* line = scratch + row * pitch * kLane;
    std::fill_n(line, before * kLane, A(0));
    std::fill_n(line + (before + width) * kLane, after * kLane, A(0));
  }
  if (width == 0) return;
  for_each_run(block, rows, inside, [&](const T* run, int64_t pixels, int64_t row) {
    A* out = scratch + ((row - rows.begin) * pitch + before) * kLane;
    int64_t column = 0;
    const auto put = [&](Vec<A> v) {
      store(out + column * kLane, v);
      if (++column == width) column = 0, out += pitch * kLane;
    };
    if (block.channel == 1) {
      for (int64_t i = 0; i < pixels; ++i) put(load(run + i * block.pixel, block.channels));
      return;
    }
    for_each_vector<A>(pixels, [&](int64_t i, auto count) {
      Vec<A> square[kLane]{};
      for (int64_t c = 0; c < block.channels; ++c) square[c] = load(run + c * block.channel + i, count);
      transpose<A>(square);
      const int64_t all = std::min(kLane, pixels - i);
      for (int64_t k = 0; k < all; ++k) put(square[k]);
    });
  });
}

// ---- the loop ----

// Vectors that the loop walks over: element i of row r lies at data + r * row + i * step.
template <class A>
struct Walk {
  const A* data;
  int64_t row, step;

  Walk moved(int64_t elements) const { return {data + elements, row, step}; }
};

// sums[k] += shared[r][i] * other[r][i], the latter `next` * k elements further on, for all r < rows and i < steps.
template <int kCount, class A>
inline void multiply(int64_t rows, int64_t steps, Walk<A> shared, Walk<A> other, int64_t next, Vec<A> (&sums)[kCount]) {
  for (int64_t r = 0; r < rows; ++r, shared.data += shared.row, other.data += other.row) {
    const A *one = shared.data, *many = other.data;
    for (int64_t i = 0; i < steps; ++i, one += shared.step, many += other.step) {
      const Vec<A> factor = load(one);
      for (int k = 0; k < kCount; ++k) sums[k] += factor * load(many + k * next);
    }
  }
}

// Calls f with `count`, 1 to kSums, as a constant.
template <class F, int kCount = kSums>
inline void visit_count(int64_t count, const F& f) {
  if constexpr (kCount > 1) {
    if (count < kCount) return visit_count<F, kCount - 1>(count, f);
  }
  f(std::integral_constant<int, kCount>{});
}

// Calls body(first, count) for parts of [0, n), all of about the same size.
template <class Body>
void for_each_part(int64_t n, const Body& body) {
  const int64_t parts = ceil_div(n, kSums);
  for (int64_t i = 0; i < parts; ++i) body(n * i / parts, n * (i + 1) / parts - n * i / parts);
}

// ---- forward, and the input's gradient ----

// Of one dimension, what is written in the same way: element k of `count` lies at first + k * step, and is the sum over
// taps j of what is read at read + k * read_step + j * dilation, times the weight tap + j * tap_step.
struct Phase {
  int64_t first, step, count;
  int64_t read, read_step, dilation;
  int64_t taps, tap, tap_step;
};

Phase forward_phase(const DepthwiseAxis& a, Range range) {
  return {range.begin, 1, range.size(), range.begin * a.stride - a.padding, a.stride, a.dilation, a.taps, 0, 1};
}

// The gradient of x[i] sums y[o] over the taps t with o * stride + t * dilation = i + padding: those with the remainder
// that i + padding has. The taps are taken backwards, so that o grows.
Phase gradient_phase(const DepthwiseAxis& a, Range range, int64_t index) {
  Phase phase{range.begin + index, a.stride, ceil_div(range.size() - index, a.stride), 0, 1, 1, 0, 0, 0};
  const int64_t place = phase.first + a.padding, period = a.stride / std::gcd(a.stride, a.dilation);
  int64_t tap = 0;
  while (tap < std::min(period, a.taps) && (tap * a.dilation - place) % a.stride != 0) ++tap;
  if (tap == std::min(period, a.taps)) return phase;
  phase.taps = (a.taps - 1 - tap) / period + 1;
  phase.tap = tap + (phase.taps - 1) * period;
  phase.tap_step = -period;
  phase.read = (place - phase.tap * a.dilation) / a.stride;
  phase.dilation = period * a.dilation / a.stride;
  return phase;
}

// What a range of what is written reads, without the padding that no tap of a part meets.
Range read_range(const DepthwiseAxis& a, bool gradient, Range range) {
  const int64_t reach = (a.taps - 1) * a.dilation, margin = (kSums - 1) * std::max(a.stride, a.dilation);
  const int64_t size = gradient ? a.y_size : a.x_size;
  const Range all = gradient
                        ? Range{ceil_div(range.begin + a.padding - reach, a.stride),
                                floor_div(range.end - 1 + a.padding, a.stride) + 1}
                        : Range{range.begin * a.stride - a.padding, (range.end - 1) * a.stride - a.padding + reach + 1};
  const int64_t begin = std::clamp(all.begin, -margin, size + margin);
  return {begin, std::clamp(all.end, begin, size + margin)};
}

// The longest that read_range is for `count` elements.
int64_t most_read(const DepthwiseAxis& a, bool gradient, int64_t count) {
  const int64_t reach = (a.taps - 1) * a.dilation, margin = (kSums - 1) * std::max(a.stride, a.dilation);
  const int64_t all = gradient ? (count + reach) / a.stride + 2 : (count - 1) * a.stride + reach + 1;
  return std::min(all, (gradient ? a.y_size : a.x_size) + 2 * margin);
}

Range inside(Range range, int64_t size) {
  const int64_t begin = std::clamp<int64_t>(range.begin, 0, size);
  return {begin, std::clamp(range.end, begin, size)};
}

// The taps of a phase with which any of `count` elements from `read` on, `step` apart, lies in [0, size).
Range taps_inside(const Phase& phase, int64_t read, int64_t step, int64_t count, int64_t size) {
  const int64_t begin = std::max<int64_t>(ceil_div(-read - (count - 1) * step, phase.dilation), 0);
  return {begin, std::max(begin, std::min(floor_div(size - 1 - read, phase.dilation) + 1, phase.taps))};
}

template <class A>
struct TileInput {
  const A* data;  // What was gathered of rows and columns.
  Range rows, columns;
  int64_t height, width;  // Of the image.
  const A* weight;        // (taps, lanes)
  int64_t weight_pitch;
};

// Every element of the phases y and x into `out`, (rows, columns, lanes).
template <class A>
void convolve(const TileInput<A>& in, const Phase& y, const Phase& x, Range rows, Range columns, A* out) {
  constexpr int64_t kLane = kLanes<A>;
  const int64_t pitch = in.columns.size() * kLane, weight_pitch = in.weight_pitch * kLane;
  for_each_part(x.count, [&](int64_t first, int64_t count) {
    const int64_t read = x.read + first * x.read_step;
    Range taps = taps_inside(x, read, x.read_step, count, in.width);
    // A filter so large that every output meets the whole row: a step for each of its elements and none for padding.
    const bool whole = x.read_step == 1 && x.dilation == 1 && read + count <= 1 && in.width - read <= x.taps;
    if (whole) taps = {-read, in.width - read};
    const Walk<A> pixels{in.data + (read + taps.begin * x.dilation - in.columns.begin) * kLane, y.dilation * pitch,
                         x.dilation * kLane};
    const Walk<A> weights{in.weight + (x.tap + taps.begin * x.tap_step) * kLane, y.tap_step * weight_pitch,
                          x.tap_step * kLane};
    visit_count(count, [&](auto constant) {
      for (int64_t k = 0; k < y.count; ++k) {
        const int64_t read_y = y.read + k * y.read_step;
        const Range taps_y = taps_inside(y, read_y, 0, 1, in.height);
        const Walk<A> row = pixels.moved((read_y + taps_y.begin * y.dilation - in.rows.begin) * pitch);
        const Walk<A> filter = weights.moved((y.tap + taps_y.begin * y.tap_step) * weight_pitch);
        Vec<A> sums[constant()]{};
        if (whole) {
          multiply(taps_y.size(), taps.size(), row, filter, -weights.step, sums);
        } else {
          multiply(taps_y.size(), taps.size(), filter, row, x.read_step * kLane, sums);
        }
        A* place =
            out +
            ((y.first + k * y.step - rows.begin) * columns.size() + x.first + first * x.step - columns.begin) * kLane;
        for (int i = 0; i < constant(); ++i) store(place + i * x.step * kLane, sums[i]);
      }
    });
  });
}

// The epilogue over a tile of sums.
template <class T>
void write_tile(const DepthwiseParams& p, const Block<T>& output, const Block<const T>& residual,
                const Block<T>& preact, const T* bias, Range rows, Range columns, const acc_t<T>* sums) {
  using A = acc_t<T>;
  constexpr int64_t kLane = kLanes<A>;
  const auto finish = [&](Vec<A> v, int64_t offset, auto count) {
    if (residual.data != nullptr) v += load(residual.data + offset, count);
    if (preact.data != nullptr) store(preact.data + offset, v, count);
    store(output.data + offset, p.activation == Activation::kNone ? v : activate<A>(p.activation, v), count);
  };
  const Vec<A> added = bias == nullptr ? Vec<A>{} : load(bias, output.channels);
  for_each_run(output, rows, columns, [&](const T* run, int64_t pixels, int64_t row) {
    const A* from = sums + (row - rows.begin) * columns.size() * kLane;
    const int64_t offset = run - output.data;
    if (output.channel == 1) {
      for (int64_t i = 0; i < pixels; ++i) {
        finish(load(from + i * kLane) + added, offset + i * output.pixel, output.channels);
      }
      return;
    }
    for_each_vector<A>(pixels, [&](int64_t i, auto count) {
      Vec<A> square[kLane];
      for (int64_t k = 0; k < kLane; ++k) square[k] = load(from + (i + k) * kLane) + added;
      transpose<A>(square);
      for (int64_t c = 0; c < output.channels; ++c) finish(square[c], offset + c * output.channel + i, count);
    });
  });
}

// (taps, lanes) of the channels from `channel` on.
template <class T>
void gather_weight(const DepthwiseParams& p, int64_t channel, acc_t<T>* out) {
  constexpr int64_t kLane = kLanes<acc_t<T>>;
  const int64_t taps = p.taps(), channels = std::min(p.channels - channel, kLane);
  const T* weight = static_cast<const T*>(p.w) + channel * taps;
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t c = 0; c < kLane; ++c) out[t * kLane + c] = c < channels ? to_acc(weight[c * taps + t]) : 0;
  }
}

// Rows of a tile, about as many in each, and not so few that most of what is gathered is its neighbours'.
int64_t tile_rows(const DepthwiseAxis& a, int64_t size, int64_t row_bytes) {
  const int64_t reach = (a.taps - 1) * a.dilation;
  const int64_t most = std::max(kTileBytes / row_bytes - reach, std::max<int64_t>(reach, kSums));
  return ceil_div(size, ceil_div(size, most));
}

template <class T>
void convolve_all(const DepthwiseParams& p, bool gradient) {
  using A = acc_t<T>;
  constexpr int64_t kLane = kLanes<A>;
  const auto written = [&](const DepthwiseAxis& a) { return gradient ? a.x_size : a.y_size; };
  const auto read = [&](const DepthwiseAxis& a) { return gradient ? a.y_size : a.x_size; };
  const int64_t height = written(p.height), width = written(p.width);
  const int64_t columns = std::min(width, kTileColumns);
  const int64_t rows = tile_rows(p.height, height, columns * kVectorBytes);
  const int64_t vectors = most_read(p.height, gradient, rows) * most_read(p.width, gradient, columns);
  const int64_t down = ceil_div(height, rows), across = ceil_div(width, columns), tiles = down * across;
  const int64_t blocks = ceil_div(p.channels, kLane);
  const int64_t phases_y = gradient ? p.height.stride : 1, phases_x = gradient ? p.width.stride : 1;
  parallel_for(
      0, blocks * p.batch * tiles, row_grain(rows * columns * kLane * p.taps() / 4), [&](int64_t begin, int64_t end) {
        VectorScratch<A> in(vectors), out(rows * columns + kLane), weight(p.taps());
        int64_t prepared = -1;
        for (int64_t unit = begin; unit < end; ++unit) {
          const int64_t channel = unit / (p.batch * tiles) * kLane, image = unit / tiles % p.batch, tile = unit % tiles;
          if (channel != prepared) gather_weight<T>(p, prepared = channel, weight.data());
          const Range tile_y{height * (tile / across) / down, height * (tile / across + 1) / down};
          const Range tile_x{width * (tile % across) / across, width * (tile % across + 1) / across};
          const TileInput<A> input{in.data(),
                                   inside(read_range(p.height, gradient, tile_y), read(p.height)),
                                   read_range(p.width, gradient, tile_x),
                                   read(p.height),
                                   read(p.width),
                                   weight.data(),
                                   p.width.taps};
          const auto block = [&](auto* tensor, int64_t h, int64_t w) {
            return block_of(p, tensor, image, channel, h, w);
          };
          gather(block(static_cast<const T*>(gradient ? p.y : p.x), input.height, input.width), input.rows,
                 input.columns, in.data());
          for (int64_t y = 0; y < std::min(phases_y, tile_y.size()); ++y) {
            for (int64_t x = 0; x < std::min(phases_x, tile_x.size()); ++x) {
              convolve(input, gradient ? gradient_phase(p.height, tile_y, y) : forward_phase(p.height, tile_y),
                       gradient ? gradient_phase(p.width, tile_x, x) : forward_phase(p.width, tile_x), tile_y, tile_x,
                       out.data());
            }
          }
          const T* bias = static_cast<const T*>(p.bias);
          write_tile(p, block(static_cast<T*>(p.output), height, width),
                     block(static_cast<const T*>(p.residual), height, width),
                     block(static_cast<T*>(p.preact), height, width), bias == nullptr ? bias : bias + channel, tile_y,
                     tile_x, out.data());
        }
      });
}

// ---- the weight's gradient ----

// Adds to `out`, (taps, lanes), what a tile's y and the x that it reads give.
template <class A>
void correlate(const DepthwiseParams& p, Range rows, Range read_y, Range read_x, const A* x, const A* y, A* out) {
  constexpr int64_t kLane = kLanes<A>;
  const DepthwiseAxis &h = p.height, &w = p.width;
  const int64_t x_pitch = read_x.size() * kLane, y_pitch = w.y_size * kLane;
  const int64_t rows_a_sum = std::max<int64_t>(kSummedProducts / w.y_size, 1);
  for (int64_t t = 0; t < h.taps; ++t) {
    const int64_t shift_y = t * h.dilation - h.padding;
    const int64_t begin = std::max(rows.begin, ceil_div(-shift_y, h.stride));
    const int64_t end = std::min(rows.end, floor_div(h.x_size - 1 - shift_y, h.stride) + 1);
    for_each_part(w.taps, [&](int64_t first, int64_t count) {
      // Positions at which any of the taps meets the row.
      const int64_t shift_x = first * w.dilation - w.padding;
      const int64_t from = std::max<int64_t>(ceil_div(-shift_x - (count - 1) * w.dilation, w.stride), 0);
      const int64_t to = std::min(floor_div(w.x_size - 1 - shift_x, w.stride) + 1, w.y_size);
      A* place = out + (t * w.taps + first) * kLane;
      for (int64_t row = begin; row < end; row += rows_a_sum) {
        const Walk<A> grads{y + (row - rows.begin) * y_pitch + from * kLane, y_pitch, kLane};
        const Walk<A> pixels{x + (row * h.stride + shift_y - read_y.begin) * x_pitch +
                                 (from * w.stride + shift_x - read_x.begin) * kLane,
                             h.stride * x_pitch, w.stride * kLane};
        visit_count(count, [&](auto constant) {
          Vec<A> sums[constant()]{};
          multiply(std::min(rows_a_sum, end - row), to - from, grads, pixels, w.dilation * kLane, sums);
          for (int i = 0; i < constant(); ++i) store(place + i * kLane, load(place + i * kLane) + sums[i]);
        });
      }
    });
  }
}

template <class T>
void weight_grad_all(const DepthwiseParams& p) {
  using A = acc_t<T>;
  constexpr int64_t kLane = kLanes<A>;
  const DepthwiseAxis &h = p.height, &w = p.width;
  const int64_t rows = tile_rows(h, h.y_size, w.y_size * kVectorBytes), down = ceil_div(h.y_size, rows);
  const int64_t blocks = ceil_div(p.channels, kLane), partials = depthwise_partials(p.batch), taps = p.taps();
  const Range columns{0, w.y_size}, read_x = read_range(w, false, columns);
  parallel_for(0, blocks * partials, row_grain(p.batch / partials * h.y_size * w.y_size * kLane * taps / 4),
               [&](int64_t begin, int64_t end) {
                 VectorScratch<A> x(most_read(h, false, rows) * read_x.size()), y(rows * w.y_size), sums(taps);
                 for (int64_t unit = begin; unit < end; ++unit) {
                   const int64_t channel = unit / partials * kLane, partial = unit % partials;
                   std::fill_n(sums.data(), taps * kLane, A(0));
                   for (int64_t i = p.batch * partial / partials; i < p.batch * (partial + 1) / partials; ++i) {
                     for (int64_t tile = 0; tile < down; ++tile) {
                       const Range tile_y{h.y_size * tile / down, h.y_size * (tile + 1) / down};
                       const Range read_y = inside(read_range(h, false, tile_y), h.x_size);
                       gather(block_of(p, static_cast<const T*>(p.x), i, channel, h.x_size, w.x_size), read_y, read_x,
                              x.data());
                       gather(block_of(p, static_cast<const T*>(p.y), i, channel, h.y_size, w.y_size), tile_y, columns,
                              y.data());
                       correlate(p, tile_y, read_y, read_x, x.data(), y.data(), sums.data());
                     }
                   }
                   A* out = static_cast<A*>(p.partials) + (partial * p.channels + channel) * taps;
                   for (int64_t c = 0; c < std::min(kLane, p.channels - channel); ++c) {
                     for (int64_t t = 0; t < taps; ++t) out[c * taps + t] = sums.data()[t * kLane + c];
                   }
                 }
               });
  reduce_partials<T>(static_cast<const A*>(p.partials), partials, p.channels * taps, static_cast<T*>(p.output));
}

}  // namespace

void depthwise_forward(const DepthwiseParams& p) {
  visit_float(p.dtype, [&](auto tag) { convolve_all<decltype(tag)>(p, false); });
}

void depthwise_input_grad(const DepthwiseParams& p) {
  visit_float(p.dtype, [&](auto tag) { convolve_all<decltype(tag)>(p, true); });
}

void depthwise_weight_grad(const DepthwiseParams& p) {
  visit_float(p.dtype, [&](auto tag) { weight_grad_all<decltype(tag)>(p); });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(depthwise_forward, DepthwiseParams)
WARPWRIGHT_CPU_LAUNCHER(depthwise_input_grad, DepthwiseParams)
WARPWRIGHT_CPU_LAUNCHER(depthwise_weight_grad, DepthwiseParams)
