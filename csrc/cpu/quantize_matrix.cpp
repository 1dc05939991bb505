// Quantization of a matrix and of its transpose on the CPU. Rows go to threads; each row, or strip of rows that shares
// squares, is read for its largest magnitudes and again, from the cache, for the quotients. The transpose is made of
// tiles of kTile x kTile codes, so that lines of both matrices are used whole.

#include <type_traits>

#include "cpu/float8.h"
#include "cpu/parallel.h"
#include "cpu/vec.h"
#include "kernels/philox.h"
#include "kernels/quantize.h"

WARPWRIGHT_ISA_BEGIN

namespace {

constexpr int64_t kTile = 64;

inline Vec<float> floor_of(Vec<float> x) {
  const Vec<float> rounded = round_even(x);
  return rounded > x ? rounded - 1.0f : rounded;
}
// A uniform number from [0, 1) of 24 bits.
inline Vec<float> uniform(U32s words) { return __builtin_convertvector((I32s)(words >> 8), Vec<float>) * 0x1p-24f; }

// `words`: random bits, used where kStochastic.
template <class F, bool kStochastic>
U32s encode(Vec<float> x, U32s words) {
  if constexpr (std::is_same_v<F, Int8>) {
    // A random number moves 127 to no other integer.
    return encode_int8(x, [&](Vec<float> v) { return kStochastic ? floor_of(v + uniform(words)) : round_even(v); });
  } else if constexpr (!kStochastic) {
    return encode_float8<F>(x);
  } else {
    constexpr int kDropped = 23 - F::kMantissa;
    const U32s bits = (U32s)x, sign = (bits >> 24) & 0x80u;
    const Vec<float> clamped = vmin((Vec<float>)(bits & 0x7fffffffu), splat(F::kMax));
    const U32s magnitude = (U32s)clamped;
    const uint32_t rebias = static_cast<uint32_t>(127 - F::kBias) << F::kMantissa;
    const U32s normal = ((magnitude + (words >> (32 - kDropped))) >> kDropped) - rebias;
    const Vec<float> steps = clamped * bit_cast<float>(power_bits(F::kBias - 1 + F::kMantissa));
    const U32s is_small = (U32s)(magnitude < power_bits(1 - F::kBias));
    // Of large numbers the steps do not matter, but their conversion would be undefined.
    const Vec<float> few = is_small ? steps : Vec<float>{};
    const U32s subnormal = (U32s) __builtin_convertvector(floor_of(few + uniform(words)), I32s);
    return select((U32s)(x != x), U32s{} + kFloat8Nan, sign | select(is_small, subnormal, normal));
  }
}

// Elements [col, col + count) of a row as contiguous memory, gathered into `scratch` where they are strided.
template <class T>
const T* part_of_row(Rows rows, int64_t row, int64_t col, int64_t count, T* scratch) {
  rows.data = static_cast<T*>(rows.data) + col * rows.col_stride;
  return row_data(rows, row, count, scratch);
}

// The random words of kFloatLanes elements of a row from `col`, a multiple of 4, on.
inline U32s words_at(int64_t seed, int64_t row, int64_t col, int64_t offset) {
  U32s words;
  for (int quad = 0; quad < kFloatLanes / kPhiloxWords; ++quad) {
    const PhiloxBlock block = philox(seed, row, col / kPhiloxWords + quad, offset);
    for (int i = 0; i < kPhiloxWords; ++i) words[quad * kPhiloxWords + i] = block.words[i];
  }
  return words;
}

template <class T, class F, bool kStochastic>
class Straight {
 public:
  explicit Straight(const QuantizeMatrixParams& p) : p_(p), grid_(p.straight.grid), scratch_(p.cols) {}

  // Rows that share scales, [first, last); `known`: the scales are there already.
  void strip(int64_t first, int64_t last, bool known) const {
    for (int64_t col = 0; col < p_.cols; col += grid_.block_cols) {
      const int64_t count = p_.cols - col < grid_.block_cols ? p_.cols - col : grid_.block_cols;
      float* scale = p_.straight.scale + grid_.at(first, col);
      if (!known) *scale = scale_of_bits(largest(first, last, col, count), F::kMax);
      for (int64_t row = first; row < last; ++row) encode_part(row, col, count, *scale);
    }
  }
  uint32_t largest(int64_t first, int64_t last, int64_t col, int64_t count) const {
    uint32_t best = 0;
    for (int64_t row = first; row < last; ++row) {
      const uint32_t found = largest_magnitude(part_of_row(p_.input, row, col, count, scratch_.data()), count);
      best = found > best ? found : best;
    }
    return best;
  }

 private:
  void encode_part(int64_t row, int64_t col, int64_t count, float scale) const {
    const T* x = part_of_row(p_.input, row, col, count, scratch_.data());
    uint8_t* out = p_.straight.quantized + row * p_.cols + col;
    for_each_vector<float>(count, [&](int64_t i, auto n) {
      U32s words{};
      if constexpr (kStochastic) words = words_at(p_.seed, row, col + i, 0);
      store_bytes(out + i, encode<F, kStochastic>(load(x + i, n) / splat(scale), words), n);
    });
  }

  const QuantizeMatrixParams& p_;
  const ScaleGrid grid_;
  Scratch<T> scratch_;
};

// Columns [col, col + count), at most kTile, as rows of the transposed matrix.
template <class T, class F, bool kStochastic>
class Turned {
 public:
  Turned(const QuantizeMatrixParams& p, int64_t col, int64_t count) : p_(p), col_(col), count_(count) {}

  void run() {
    const int64_t step = p_.transposed.grid.block_cols;
    for (int64_t first = 0; first < p_.rows; first += step) {
      const int64_t last = p_.rows - first < step ? p_.rows : first + step;
      set_scales(first, last);
      for (int64_t row = first; row < last; row += kTile) tile(row, last - row < kTile ? last - row : kTile);
    }
  }

 private:
  const T* part(int64_t row) { return part_of_row(p_.input, row, col_, count_, gathered_); }

  void set_scales(int64_t first, int64_t last) {
    I32s best[kTile / kFloatLanes]{};
    const bool own = p_.granularity == Granularity::kRow || p_.granularity == Granularity::kBlock;
    for (int64_t row = first; own && row < last; ++row) {
      const T* x = part(row);
      for_each_vector<float>(count_, [&](int64_t i, auto n) {
        I32s& lane = best[i / kFloatLanes];
        lane = vmax(lane, (I32s)load(x + i, n) & 0x7fffffff);
      });
    }
    for (int64_t c = 0; c < count_; ++c) {
      float* scale = p_.transposed.scale + p_.transposed.grid.at(col_ + c, first);
      // Squares and the whole tensor are what they were.
      scales_[c] = own ? scale_of_bits(static_cast<uint32_t>(best[c / kFloatLanes][c % kFloatLanes]), F::kMax)
                       : p_.straight.scale[p_.straight.grid.at(first, col_ + c)];
      if (own || (col_ + c) % p_.transposed.grid.block_rows == 0) *scale = scales_[c];
    }
  }
  void tile(int64_t row, int64_t rows) {
    if constexpr (kStochastic) {
      for (int64_t c = 0; c < count_; ++c) {
        for (int64_t r = 0; r < rows; r += kFloatLanes) {
          const U32s words = words_at(p_.seed, col_ + c, row + r, 1);
          for (int lane = 0; lane < kFloatLanes; ++lane) words_[(r + lane) * kTile + c] = words[lane];
        }
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const T* x = part(row + r);
      for_each_vector<float>(count_, [&](int64_t i, auto n) {
        U32s words{};
        if constexpr (kStochastic) std::memcpy(&words, words_ + r * kTile + i, sizeof(words));
        const Vec<float> scales = load(scales_ + i);
        store_bytes(codes_ + r * kTile + i, encode<F, kStochastic>(load(x + i, n) / scales, words), n);
      });
    }
    for (int64_t c = 0; c < count_; ++c) {
      uint8_t* out = p_.transposed.quantized + (col_ + c) * p_.rows + row;
      for (int64_t r = 0; r < rows; ++r) out[r] = codes_[r * kTile + c];
    }
  }

  const QuantizeMatrixParams& p_;
  const int64_t col_, count_;
  T gathered_[kTile];
  float scales_[kTile] = {};
  uint8_t codes_[kTile * kTile];
  uint32_t words_[kStochastic ? kTile * kTile : 1] = {};
};

template <class T, class F, bool kStochastic>
void quantize_as(const QuantizeMatrixParams& p) {
  const bool tensor = p.granularity == Granularity::kTensor;
  const int64_t step = p.granularity == Granularity::kSquare ? p.block : 1;
  if (tensor) {
    Scratch<uint32_t> maxima(p.rows);
    parallel_for(0, p.rows, row_grain(p.cols), [&](int64_t begin, int64_t end) {
      const Straight<T, F, kStochastic> straight(p);
      for (int64_t row = begin; row < end; ++row) maxima.data()[row] = straight.largest(row, row + 1, 0, p.cols);
    });
    uint32_t largest = 0;
    for (int64_t row = 0; row < p.rows; ++row) largest = maxima.data()[row] > largest ? maxima.data()[row] : largest;
    *p.straight.scale = scale_of_bits(largest, F::kMax);
    if (p.transposed.quantized != nullptr) *p.transposed.scale = *p.straight.scale;
  }
  parallel_for(0, (p.rows + step - 1) / step, row_grain(p.cols * step), [&](int64_t begin, int64_t end) {
    const Straight<T, F, kStochastic> straight(p);
    for (int64_t strip = begin; strip < end; ++strip) {
      straight.strip(strip * step, p.rows - strip * step < step ? p.rows : (strip + 1) * step, tensor);
    }
  });
  if (p.transposed.quantized == nullptr) return;
  parallel_for(0, (p.cols + kTile - 1) / kTile, row_grain(p.rows * kTile), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t col = tile * kTile;
      Turned<T, F, kStochastic>(p, col, p.cols - col < kTile ? p.cols - col : kTile).run();
    }
  });
}

// Calls f with the format that `dtype` names.
template <class Function>
void visit_quantized(DType dtype, const Function& f) {
  if (dtype == DType::kInt8) return f(Int8{});
  visit_float8(dtype, f);
}

template <class F>
Vec<float> decode(U32s bytes) {
  if constexpr (std::is_same_v<F, Int8>) {
    return __builtin_convertvector((I32s)(bytes << 24) >> 24, Vec<float>);
  } else {
    return decode_float8<F>(bytes);
  }
}

// T (float64) holds the product of a float32 and an 8-bit number exactly, float32 rounds it once.
template <class T, class F>
void dequantize_rows(const DequantizeMatrixParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  Scratch<uint8_t> scratch(p.cols);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t col = 0; col < p.cols; col += p.grid.block_cols) {
      const int64_t count = p.cols - col < p.grid.block_cols ? p.cols - col : p.grid.block_cols;
      const uint8_t* bytes = part_of_row(p.input, row, col, count, scratch.data());
      const float scale = p.scale[p.grid.at(row, col)];
      T* out = static_cast<T*>(p.output) + row * p.cols + col;
      for_each_vector<float>(count, [&](int64_t i, auto n) {
        const Vec<float> x = decode<F>(load_bytes(bytes + i, n));
        if constexpr (sizeof(A) == sizeof(float)) {
          store(out + i, x * splat(scale), n);
        } else {
          const int64_t lanes = count - i < kFloatLanes ? count - i : kFloatLanes;
          for (int64_t lane = 0; lane < lanes; ++lane) out[i + lane] = A(x[lane]) * A(scale);
        }
      });
    }
  }
}

}  // namespace

void quantize(const QuantizeMatrixParams& p) {
  const auto run = [&](auto tag) {
    visit_quantized(p.quantized_dtype, [&](auto format) {
      using T = decltype(tag);
      using F = decltype(format);
      return p.stochastic ? quantize_as<T, F, true>(p) : quantize_as<T, F, false>(p);
    });
  };
  switch (p.input_dtype) {
    case DType::kFloat32: return run(float{});
    case DType::kFloat16: return run(Half{});
    case DType::kBFloat16: return run(BFloat16{});
    default: std::abort();  // The bindings let no other type through.
  }
}

void dequantize(const DequantizeMatrixParams& p) {
  visit_float(p.output_dtype, [&](auto tag) {
    visit_quantized(p.input_dtype, [&](auto format) {
      parallel_for(0, p.rows, row_grain(p.cols),
                   [&](int64_t b, int64_t e) { dequantize_rows<decltype(tag), decltype(format)>(p, b, e); });
    });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(quantize, QuantizeMatrixParams)
WARPWRIGHT_CPU_LAUNCHER(dequantize, DequantizeMatrixParams)
