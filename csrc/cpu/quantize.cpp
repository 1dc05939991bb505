// 8-bit quantization on the CPU: a group is read twice, for its largest magnitude and for the quotients, the second
// time from the cache. Groups go to threads.

#include "kernels/quantize.h"

#include "cpu/float8.h"
#include "cpu/parallel.h"
#include "cpu/vec.h"

WARPWRIGHT_ISA_BEGIN

namespace {

struct Group {
  int64_t row, first, count;
};

// Groups are numbered row by row.
template <class Params>
Group group_at(const Params& p, int64_t index) {
  const int64_t first = index % p.groups * p.block;
  return {index / p.groups, first, p.cols - first < p.block ? p.cols - first : p.block};
}

template <class T>
const T* group_data(Rows rows, const Group& group, T* scratch) {
  rows.data = static_cast<T*>(rows.data) + group.first * rows.col_stride;
  return row_data(rows, group.row, group.count, scratch);
}

template <class T, class F>
void quantize_groups(const QuantizeParams& p, int64_t begin, int64_t end) {
  Scratch<T> scratch(p.block);
  for (int64_t index = begin; index < end; ++index) {
    const Group group = group_at(p, index);
    const T* x = group_data(p.input, group, scratch.data());
    const float scale = scale_of_bits(largest_magnitude(x, group.count), F::kMax);
    static_cast<float*>(p.scale)[index] = scale;
    uint8_t* out = static_cast<uint8_t*>(p.quantized) + group.row * p.cols + group.first;
    for_each_vector<float>(group.count, [&](int64_t i, auto n) {
      store_bytes(out + i, encode_float8<F>(load(x + i, n) / splat(scale)), n);
    });
  }
}

// T (float64) holds the product of a float32 and an 8-bit number exactly, float32 rounds it once.
template <class T, class F>
void dequantize_groups(const DequantizeParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  Scratch<uint8_t> scratch(p.block);
  for (int64_t index = begin; index < end; ++index) {
    const Group group = group_at(p, index);
    const uint8_t* bytes = group_data(p.input, group, scratch.data());
    const int64_t scale_at = p.scale.offset(group.row) + index % p.groups * p.scale.col_stride;
    const float scale = static_cast<const float*>(p.scale.data)[scale_at];
    T* out = static_cast<T*>(p.output) + group.row * p.cols + group.first;
    for_each_vector<float>(group.count, [&](int64_t i, auto n) {
      const Vec<float> x = decode_float8<F>(load_bytes(bytes + i, n));
      if constexpr (sizeof(A) == sizeof(float)) {
        store(out + i, x * splat(scale), n);
      } else {
        const int64_t lanes = group.count - i < kFloatLanes ? group.count - i : kFloatLanes;
        for (int64_t lane = 0; lane < lanes; ++lane) out[i + lane] = A(x[lane]) * A(scale);
      }
    });
  }
}

}  // namespace

void quantize_fp8(const QuantizeParams& p) {
  const auto run = [&](auto tag) {
    visit_float8(p.quantized_dtype, [&](auto format) {
      parallel_for(0, p.rows * p.groups, row_grain(p.block),
                   [&](int64_t b, int64_t e) { quantize_groups<decltype(tag), decltype(format)>(p, b, e); });
    });
  };
  switch (p.input_dtype) {
    case DType::kFloat32: return run(float{});
    case DType::kFloat16: return run(Half{});
    case DType::kBFloat16: return run(BFloat16{});
    default: std::abort();  // The bindings let no other type through.
  }
}

void dequantize_fp8(const DequantizeParams& p) {
  visit_float(p.output_dtype, [&](auto tag) {
    visit_float8(p.input_dtype, [&](auto format) {
      parallel_for(0, p.rows * p.groups, row_grain(p.block),
                   [&](int64_t b, int64_t e) { dequantize_groups<decltype(tag), decltype(format)>(p, b, e); });
    });
  });
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(quantize_fp8, QuantizeParams)
WARPWRIGHT_CPU_LAUNCHER(dequantize_fp8, DequantizeParams)
