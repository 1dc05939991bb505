// Products with packed weights on the CPU: each packed row is read once, and taken apart in registers for all rows of
// the input. Rows of the weight go to threads.
//
// A vector of words holds every 8th (4 bits) or 4th (8 bits) element of a stretch of the row in the same bits: one
// shift and one mask make a vector of elements. The input is brought into that order before.

#include "kernels/packed.h"

#include "cpu/parallel.h"
#include "cpu/vec.h"

WARPWRIGHT_ISA_BEGIN

namespace {

// Rows of the input that share the elements taken apart.
constexpr int kRowsAtOnce = 4;

template <int kBits>
constexpr int kPerWord = 32 / kBits;
template <int kBits>
constexpr uint32_t kElementMask = (1u << kBits) - 1;
// Elements in a vector of words.
template <int kBits>
constexpr int64_t kStretch = int64_t{kFloatLanes} * kPerWord<kBits>;

// The element of a word that starts at bit `step` * kBits.
template <int kBits>
constexpr int element_at(int step) {
  return kBits == 4 ? step % 4 * 2 + step / 4 : step;
}

// values[j / each] in lane j; all values that the lanes need must be there.
template <class V, class E>
V repeated(const E* values, int64_t each) {
  I32s lane;
  for (int j = 0; j < kFloatLanes; ++j) lane[j] = j;
  V result = values[0] - V{};
  for (int64_t i = 1; i * each < kFloatLanes; ++i) {
    result = lane >= static_cast<int32_t>(i * each) ? values[i] - V{} : result;
  }
  return result;
}

// The scales and zero points of one row as floats, with zeros for `groups` beyond the row's own.
template <class T>
void load_groups(const PackedWeight& w, int64_t row, int64_t groups, acc_t<T>* scale, acc_t<T>* zero) {
  const int64_t own = w.k == 0 ? 0 : ((w.k - 1) >> w.group_shift) + 1;
  const T* scales = static_cast<const T*>(w.scale) + row * w.scale_row;
  const uint8_t* zeros = static_cast<const uint8_t*>(w.zero) + (w.zero == nullptr ? 0 : row * w.zero_row);
  for (int64_t g = 0; g < groups; ++g) {
    scale[g] = g < own ? to_acc(scales[g * w.scale_col]) : 0;
    zero[g] = g < own && w.zero != nullptr ? acc_t<T>(zeros[g * w.zero_col]) : acc_t<T>(packed_center(w.bits));
  }
}

// Groups that `elements` elements of a row reach into.
int64_t groups_in(const PackedWeight& w, int64_t elements) {
  return elements == 0 ? 0 : ((elements - 1) >> w.group_shift) + 1;
}

// ---- the product ----

// Rows of the input in float32, in the order that the elements come out in, with zeros past the end.
template <class T, int kBits>
void arrange_input(const GemmParams& g, int64_t stretches, float* arranged) {
  for (int64_t row = 0; row < g.m; ++row) {
    const T* x = static_cast<const T*>(g.a) + row * g.a_row;
    for (int64_t i = 0; i < stretches * kPerWord<kBits>; ++i) {
      const int64_t first = i / kPerWord<kBits> * kStretch<kBits> + element_at<kBits>(i % kPerWord<kBits>);
      for (int lane = 0; lane < kFloatLanes; ++lane) {
        const int64_t k = first + lane * kPerWord<kBits>;
        *arranged++ = k < g.k ? to_acc(x[k * g.a_col]) : 0.0f;
      }
    }
  }
}

struct PackedRow {
  const uint8_t* data;
  int64_t bytes;
  const float* scale;  // For each group that a stretch reaches into.
  const float* zero;
  int group_shift;
};

// sums[r] = row r of the input times the row, for kRows of them.
template <int kBits, int kRows>
void multiply_row(const PackedRow& row, const float* input, int64_t input_row, float* sums) {
  constexpr int64_t kBytes = sizeof(U32s);
  const int64_t words_a_group = (int64_t{1} << row.group_shift) / kPerWord<kBits>;
  Vec<float> totals[kRows]{};
  for (int64_t i = 0; i * kBytes < row.bytes; ++i) {
    U32s words{};
    const int64_t left = row.bytes - i * kBytes;
    std::memcpy(&words, row.data + i * kBytes, left < kBytes ? left : kBytes);
    const int64_t group = (i * kStretch<kBits>) >> row.group_shift;
    const Vec<float> scale = repeated<Vec<float>>(row.scale + group, words_a_group);
    const Vec<float> zero = repeated<Vec<float>>(row.zero + group, words_a_group);
    Vec<float> part[kRows]{};
    for (int step = 0; step < kPerWord<kBits>; ++step) {
      const I32s element = (I32s)((words >> (step * kBits)) & kElementMask<kBits>);
      const Vec<float> value = __builtin_convertvector(element, Vec<float>) - zero;
      const float* x = input + (i * kPerWord<kBits> + step) * kFloatLanes;
      for (int r = 0; r < kRows; ++r) part[r] += value * load(x + r * input_row);
    }
    for (int r = 0; r < kRows; ++r) totals[r] += scale * part[r];
  }
  for (int r = 0; r < kRows; ++r) sums[r] = reduce_add<float>(totals[r]);
}

template <int kBits>
void multiply_rows(const PackedRow& row, int64_t rows, const float* input, int64_t input_row, float* sums) {
  switch (rows) {
    case 1: return multiply_row<kBits, 1>(row, input, input_row, sums);
    case 2: return multiply_row<kBits, 2>(row, input, input_row, sums);
    case 3: return multiply_row<kBits, 3>(row, input, input_row, sums);
    default: return multiply_row<kBits, kRowsAtOnce>(row, input, input_row, sums);
  }
}

template <class T, int kBits>
void linear_rows(const LinearPackedParams& p, int64_t begin, int64_t end) {
  const PackedWeight& w = p.weight;
  const int64_t bytes = packed_bytes(w.k, kBits), vector_bytes = sizeof(U32s);
  const int64_t stretches = (bytes + vector_bytes - 1) / vector_bytes;
  const int64_t input_row = stretches * kStretch<kBits>, groups = groups_in(w, input_row);
  Scratch<float> input(p.gemm.m * input_row), scale(groups), zero(groups);
  Scratch<uint8_t> gathered(bytes);
  arrange_input<T, kBits>(p.gemm, stretches, input.data());
  const Rows rows{const_cast<void*>(w.data), 1, {w.n}, {w.row}, w.col};
  float* output = static_cast<float*>(p.gemm.output);
  for (int64_t n = begin; n < end; ++n) {
    load_groups<T>(w, n, groups, scale.data(), zero.data());
    const PackedRow row{row_data(rows, n, bytes, gathered.data()), bytes, scale.data(), zero.data(), w.group_shift};
    for (int64_t m = 0; m < p.gemm.m; m += kRowsAtOnce) {
      const int64_t rows = p.gemm.m - m < kRowsAtOnce ? p.gemm.m - m : kRowsAtOnce;
      float sums[kRowsAtOnce];
      multiply_rows<kBits>(row, rows, input.data() + m * input_row, input_row, sums);
      for (int64_t r = 0; r < rows; ++r) output[(m + r) * w.n + n] = sums[r];
    }
  }
}

// ---- dequantize ----

// Elements [first, first + kFloatLanes) of a row, `first` a multiple of that; its bytes may have any stride.
template <int kBits>
I32s elements(const uint8_t* row, int64_t byte_stride, int64_t first) {
  constexpr int kWords = (kFloatLanes + kPerWord<kBits> - 1) / kPerWord<kBits>;
  uint32_t words[kWords];
  for (int i = 0; i < kWords; ++i) {
    const uint8_t* bytes = row + (first / kPerWord<kBits> + i) * 4 * byte_stride;
    words[i] = bytes[0] | bytes[byte_stride] << 8 | bytes[2 * byte_stride] << 16 |
               static_cast<uint32_t>(bytes[3 * byte_stride]) << 24;
  }
  U32s shifts;
  for (int j = 0; j < kFloatLanes; ++j) {
    shifts[j] = static_cast<uint32_t>(packed_shift(kBits, static_cast<int>((first + j) % kPerWord<kBits>)));
  }
  return (I32s)((repeated<U32s>(words, kPerWord<kBits>) >> shifts) & kElementMask<kBits>);
}

template <class T, int kBits>
void dequantize_rows(const DequantizePackedParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const PackedWeight& w = p.weight;
  const int64_t groups = groups_in(w, w.k);
  Scratch<A> scale(groups), zero(groups);
  for (int64_t n = begin; n < end; ++n) {
    load_groups<T>(w, n, groups, scale.data(), zero.data());
    const uint8_t* row = static_cast<const uint8_t*>(w.data) + n * w.row;
    T* out = static_cast<T*>(p.output) + n * w.k;
    for_each_vector<float>(w.k, [&](int64_t i, auto count) {
      const I32s q = elements<kBits>(row, w.col, i);
      const int64_t group = i >> w.group_shift;  // A group is whole vectors.
      if constexpr (sizeof(A) == sizeof(float)) {
        const Vec<float> value = __builtin_convertvector(q, Vec<float>) - splat(zero.data()[group]);
        store(out + i, value * splat(scale.data()[group]), count);
      } else {
        const int64_t lanes = w.k - i < kFloatLanes ? w.k - i : kFloatLanes;
        for (int64_t j = 0; j < lanes; ++j) out[i + j] = (A(q[j]) - zero.data()[group]) * scale.data()[group];
      }
    });
  }
}

}  // namespace

void linear_packed(const LinearPackedParams& p) {
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    parallel_for(0, p.gemm.n, row_grain(p.gemm.k), [&](int64_t begin, int64_t end) {
      if (p.weight.bits == 4) return linear_rows<T, 4>(p, begin, end);
      linear_rows<T, 8>(p, begin, end);
    });
  };
  switch (p.gemm.dtype) {
    case DType::kFloat32: return run(float{});
    case DType::kFloat16: return run(Half{});
    default: return run(BFloat16{});  // linear_packed_takes no other.
  }
}

void dequantize_packed(const DequantizePackedParams& p) {
  visit_float(p.weight.dtype, [&](auto tag) {
    using T = decltype(tag);
    parallel_for(0, p.weight.n, row_grain(p.weight.k), [&](int64_t begin, int64_t end) {
      if (p.weight.bits == 4) return dequantize_rows<T, 4>(p, begin, end);
      dequantize_rows<T, 8>(p, begin, end);
    });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(linear_packed, LinearPackedParams)
WARPWRIGHT_CPU_LAUNCHER(dequantize_packed, DequantizePackedParams)
