// Weights to packed integers on the CPU: a group is read twice, for its range and for the quotients, the second time
// from the cache; a row's integers are bytes before they are packed. Rows go to threads.

#include "cpu/parallel.h"
#include "cpu/vec.h"
#include "kernels/packed.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// To the nearest integer, half to even, of magnitudes below 2^22: adding 1.5 * 2^23 rounds.
inline Vec<float> round_even(Vec<float> x) {
  constexpr float kRound = 12582912.0f;
  return (x + kRound) - kRound;
}
inline Vec<double> round_even(Vec<double> x) {
  constexpr double kRound = 6755399441055744.0;
  return (x + kRound) - kRound;
}

// The smallest and the largest element and zero. NaN passes through.
template <class A>
struct Range {
  A low, high;
};
template <class T>
Range<acc_t<T>> range_of(const T* x, int64_t count) {
  using A = acc_t<T>;
  Vec<A> low{}, high{}, spoiled{};
  for_each_vector<A>(count, [&](int64_t i, auto n) {
    const Vec<A> v = load(x + i, n);
    low = vmin(v, low);
    high = vmax(v, high);
    spoiled = v == v ? spoiled : v;
  });
  Range<A> range{0, 0};
  for (int64_t lane = 0; lane < kLanes<A>; ++lane) {
    if (spoiled[lane] != 0) return {spoiled[lane], spoiled[lane]};
    range.low = low[lane] < range.low ? low[lane] : range.low;
    range.high = high[lane] > range.high ? high[lane] : range.high;
  }
  return range;
}

// `scale` in T, never below what it was: else the largest element might be cut off. The next pattern of a positive
// number is the next number.
template <class T>
T rounded_up(acc_t<T> scale) {
  T rounded = from_acc<T>(scale);
  if constexpr (sizeof(T) == 2) rounded.bits += to_acc(rounded) < scale ? 1 : 0;
  return rounded;
}

template <class T>
void quantize_group(const QuantizePackedParams& p, const T* x, int64_t count, int64_t group, uint8_t* integers) {
  using A = acc_t<T>;
  const int largest = (1 << p.bits) - 1;
  const Range<A> range = range_of(x, count);
  const bool symmetric = p.zero == nullptr;
  const A magnitude = range.high > -range.low ? range.high : -range.low;
  const A span = symmetric ? magnitude : range.high - range.low;
  const T scale = rounded_up<T>(span == 0 ? A(1) : span / static_cast<A>(symmetric ? largest / 2 : largest));
  const A step = to_acc(scale);
  A zero = packed_center(p.bits);
  if (!symmetric) {
    zero = round_even(splat<A>(-range.low / step))[0];
    p.zero[group] = static_cast<uint8_t>(zero == zero ? zero : 0);
  }
  static_cast<T*>(p.scale)[group] = scale;
  for_each_vector<A>(count, [&](int64_t i, auto n) {
    // Of a finite group no quotient is above 2^bits; others are cut before they are rounded.
    const Vec<A> limit = splat<A>(2 * largest);
    const Vec<A> quotient = load(x + i, n) / step;
    const Vec<A> near = round_even(vmax(vmin(quotient, limit), -limit)) + zero;
    const Vec<A> q = vmin(vmax(quotient == quotient ? near : -limit, Vec<A>{}), splat<A>(largest));
    const int64_t lanes = count - i < kLanes<A> ? count - i : kLanes<A>;
    for (int64_t lane = 0; lane < lanes; ++lane) integers[i + lane] = static_cast<uint8_t>(static_cast<int>(q[lane]));
  });
}

// Eight integers of 4 bits, a byte each, as a word: packed_shift. Both are little-endian.
inline void pack_word(const uint8_t* integers, uint8_t* word) {
  uint64_t q;
  std::memcpy(&q, integers, sizeof(q));
  const uint64_t pairs = q | q >> 12;  // Bytes 0, 1, 4 and 5 hold the elements 0 and 2, 1 and 3, 4 and 6, 5 and 7.
  const auto packed = static_cast<uint32_t>((pairs & 0xff) | (pairs >> 24 & 0xff00) | (pairs << 8 & 0xff0000) |
                                            (pairs >> 16 & 0xff000000));
  std::memcpy(word, &packed, sizeof(packed));
}

template <class T>
void quantize_rows(const QuantizePackedParams& p, int64_t begin, int64_t end) {
  const int64_t padded = packed_bytes(p.k, 8), bytes = packed_bytes(p.k, p.bits);
  Scratch<T> gathered(p.weight.col_stride == 1 ? 0 : p.k);
  Scratch<uint8_t> unpacked(padded);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = row_data(p.weight, row, p.k, gathered.data());
    uint8_t* out = p.data + row * bytes;
    uint8_t* integers = p.bits == 8 ? out : unpacked.data();
    for (int64_t group = 0; group < p.groups; ++group) {
      const int64_t first = group * p.group_size;
      const int64_t count = p.k - first < p.group_size ? p.k - first : p.group_size;
      quantize_group<T>(p, x + first, count, row * p.groups + group, integers + first);
    }
    for (int64_t i = p.k; i < padded; ++i) integers[i] = 0;
    if (p.bits == 8) continue;
    for (int64_t word = 0; word < padded / 8; ++word) pack_word(integers + 8 * word, out + 4 * word);
  }
}

}  // namespace

void quantize_packed(const QuantizePackedParams& p) {
  visit_float(p.dtype, [&](auto tag) {
    parallel_for(0, p.n, row_grain(p.k),
                 [&](int64_t begin, int64_t end) { quantize_rows<decltype(tag)>(p, begin, end); });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(quantize_packed, QuantizePackedParams)
