// Norms with an 8-bit result on the CPU: a row is normalised into float32 memory that stays in the caches, and
// quantized from there. Rows go to threads.

#include "kernels/norm_quantize.h"

#include "cpu/float8.h"
#include "cpu/parallel.h"
#include "cpu/vec.h"

WARPWRIGHT_ISA_BEGIN

namespace {

template <class Encode>
void quantize_row(const NormQuantizeParams& p, const float* y, int64_t row, float largest, const Encode& encode) {
  for (int64_t group = 0; group < p.groups; ++group) {
    const int64_t first = group * p.block, count = p.cols - first < p.block ? p.cols - first : p.block;
    const float scale = scale_of_bits(largest_magnitude(y + first, count), largest);
    static_cast<float*>(p.scale)[row * p.groups + group] = scale;
    uint8_t* out = static_cast<uint8_t*>(p.quantized) + row * p.cols + first;
    for_each_vector<float>(
        count, [&](int64_t i, auto n) { store_bytes(out + i, encode(load(y + first + i, n) / splat(scale)), n); });
  }
}

// The float32 norm of a row, to `y`.
template <class T>
void normalise_row(const NormQuantizeParams& p, int64_t row, T* input_row, T* residual_row, float* y) {
  const T* x = row_data(p.input, row, p.cols, input_row);
  if (p.residual.data != nullptr) {
    const T* residual = row_data(p.residual, row, p.cols, residual_row);
    T* sum = static_cast<T*>(p.sum) + row * p.cols;
    for_each_vector<float>(p.cols,
                           [&](int64_t i, auto n) { store(sum + i, load(x + i, n) + load(residual + i, n), n); });
    x = sum;
  }
  const float count = static_cast<float>(p.cols), weight_offset = static_cast<float>(p.weight_offset);
  const float mean =
      p.centred ? sum_vectors<float>(p.cols, [&](int64_t i, auto n) { return load(x + i, n); }) / count : 0.0f;
  const float squares = sum_vectors<float>(p.cols, [&](int64_t i, auto n) {
    const Vec<float> d = load(x + i, n, mean) - mean;  // Lanes past the end hold the mean: they add nothing.
    return d * d;
  });
  const float rstd = 1.0f / std::sqrt(squares / count + static_cast<float>(p.eps));
  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  for_each_vector<float>(p.cols, [&](int64_t i, auto n) {
    Vec<float> v = (load(x + i, n) - mean) * rstd;
    if (weight != nullptr) v *= load(weight + i, n) + weight_offset;
    if (bias != nullptr) v += load(bias + i, n);
    store(y + i, v, n);
  });
}

template <class T>
void norm_quantize_rows(const NormQuantizeParams& p, int64_t begin, int64_t end) {
  Scratch<T> input_row(p.cols), residual_row(p.cols);
  Scratch<float> normal(p.cols);
  for (int64_t row = begin; row < end; ++row) {
    normalise_row(p, row, input_row.data(), residual_row.data(), normal.data());
    if (p.quantized_dtype == DType::kInt8) {
      quantize_row(p, normal.data(), row, kMaxInt8, [](Vec<float> v) { return encode_int8(v, round_even); });
      continue;
    }
    visit_float8(p.quantized_dtype, [&](auto format) {
      using F = decltype(format);
      quantize_row(p, normal.data(), row, F::kMax, [](Vec<float> v) { return encode_float8<F>(v); });
    });
  }
}

}  // namespace

void norm_quantize(const NormQuantizeParams& p) {
  const auto run = [&](auto tag) {
    parallel_for(0, p.rows, row_grain(p.cols),
                 [&](int64_t begin, int64_t end) { norm_quantize_rows<decltype(tag)>(p, begin, end); });
  };
  switch (p.dtype) {
    case DType::kFloat32: return run(float{});
    case DType::kFloat16: return run(Half{});
    case DType::kBFloat16: return run(BFloat16{});
    default: std::abort();  // The bindings let no other type through.
  }
}

WARPWRIGHT_ISA_END

WARPWRIGHT_CPU_LAUNCHER(norm_quantize, NormQuantizeParams)
