// A tile of a convolution of 8-bit tensors: where its pixels lie, and what is done with its sums: scales, bias,
// residual and activation, then they are stored in the output's dtype, in 8 bits as quantize rounds.

#pragma once

#include "cpu/activation.h"
#include "cpu/byte_product.h"
#include "kernels/scaled_conv.h"

WARPWRIGHT_ISA_BEGIN

// ---- places ----

// Position (depth, height, width) of an image of y.
struct ConvPixel {
  int64_t image, position[kConvDims];

  static ConvPixel at(const ConvParams& p, int64_t flat) {
    ConvPixel pixel;
    for (int d = kConvDims - 1; d >= 0; --d) {
      pixel.position[d] = flat % p.y_size[d];
      flat /= p.y_size[d];
    }
    pixel.image = flat;
    return pixel;
  }
  void advance(const ConvParams& p) {
    for (int d = kConvDims - 1; d >= 0; --d) {
      if (++position[d] < p.y_size[d]) return;
      position[d] = 0;
    }
    ++image;
  }
  // Elements to the pixel's first channel.
  int64_t offset(const ConvTensor& tensor) const {
    int64_t offset = image * tensor.stride[0];
    for (int d = 0; d < kConvDims; ++d) offset += position[d] * tensor.stride[2 + d];
    return offset;
  }
};

// Pixels [row0, row0 + rows) of all images by filters [filter0, filter0 + cols), counted over all groups.
struct ConvTile {
  int64_t row0, rows, filter0, cols;
};

// ---- storage types ----

struct Int8Code {
  uint8_t bits;
};
inline void store(Int8Code* p, Vec<float> v, Whole count) {
  store_bytes(reinterpret_cast<uint8_t*>(p), encode_int8(v, round_even), count);
}
inline void store(Int8Code* p, Vec<float> v, int64_t count) {
  store_bytes(reinterpret_cast<uint8_t*>(p), encode_int8(v, round_even), count);
}
inline I32s as_integers(U32s bytes) { return (I32s)(bytes << 24) >> 24; }

// A vector of elements of any of these.
template <class T, class N>
inline Vec<float> load_stored(const T* p, N count) {
  return load(p, count);
}
template <class N>
inline Vec<float> load_stored(const Int8Code* p, N count) {
  return __builtin_convertvector(as_integers(load_bytes(reinterpret_cast<const uint8_t*>(p), count)), Vec<float>);
}
template <class F, class N>
inline Vec<float> load_stored(const Float8<F>* p, N count) {
  return decode_float8<F>(load_bytes(reinterpret_cast<const uint8_t*>(p), count));
}

// Calls f with a value of the storage type that `dtype` names.
template <class Function>
inline void visit_stored(DType dtype, const Function& f) {
  switch (dtype) {
    case DType::kFloat32: return f(float{});
    case DType::kFloat16: return f(Half{});
    case DType::kBFloat16: return f(BFloat16{});
    case DType::kInt8: return f(Int8Code{});
    default: return visit_float8(dtype, [&](auto format) { f(Float8<decltype(format)>{}); });
  }
}

// `count` elements, at most kTileCols, from element `at` of a tensor on.
inline void load_line(float* to, DType dtype, const void* data, int64_t at, int64_t stride, int64_t count) {
  visit_stored(dtype, [&](auto tag) {
    using T = decltype(tag);
    const T* from = static_cast<const T*>(data) + at;
    T line[kTileCols];
    if (stride != 1) {
      for (int64_t i = 0; i < count; ++i) line[i] = from[i * stride];
      from = line;
    }
    for_each_vector<float>(count, [&](int64_t i, auto n) { store(to + i, load_stored(from + i, n), n); });
  });
}

// ---- the epilogue ----

// values (rows, kTileCols): what is stored, in float32.
template <class Sum>
inline void finish_sums(const ScaledConvParams& p, const ConvTile& tile, const Sum* totals, float* values) {
  const ConvTensor& residual = p.conv.residual;
  const float input_scale = *p.input_scale;
  const float residual_scale = p.residual_scale == nullptr ? 1.0f : *p.residual_scale;
  float scale[kTileCols], bias[kTileCols] = {}, addend[kTileCols];
  for (int64_t i = 0; i < tile.cols; ++i) scale[i] = p.weight_scale[(tile.filter0 + i) * p.weight_scale_stride];
  if (p.conv.bias != nullptr) load_line(bias, p.bias_dtype, p.conv.bias, tile.filter0, 1, tile.cols);
  ConvPixel pixel = ConvPixel::at(p.conv, tile.row0);
  for (int64_t row = 0; row < tile.rows; ++row, pixel.advance(p.conv)) {
    if (residual.data != nullptr) {
      const int64_t from = pixel.offset(residual) + tile.filter0 * residual.stride[1];
      load_line(addend, p.residual_dtype, residual.data, from, residual.stride[1], tile.cols);
    }
    for_each_vector<float>(tile.cols, [&](int64_t i, auto n) {
      Vec<float> x = load_sums(totals + row * kTileCols + i) * input_scale * load(scale + i, n);
      if (p.conv.bias != nullptr) x += load(bias + i, n);
      if (residual.data != nullptr) x += load(addend + i, n) * residual_scale;
      x = activate<float>(p.conv.activation, x);
      if (p.output_scale != nullptr) x /= *p.output_scale;
      store(values + row * kTileCols + i, x, n);
    });
  }
}

// Pixel by pixel where the channels of y lie together, else channel by channel, whose neighbouring pixels do.
inline void store_values(const ScaledConvParams& p, const ConvTile& tile, const float* values) {
  const ConvTensor& y = p.conv.y;
  int64_t places[kTileRows];
  ConvPixel pixel = ConvPixel::at(p.conv, tile.row0);
  for (int64_t row = 0; row < tile.rows; ++row, pixel.advance(p.conv)) places[row] = pixel.offset(y);
  visit_stored(p.output_dtype, [&](auto tag) {
    using T = decltype(tag);
    T* const out = static_cast<T*>(y.data) + tile.filter0 * y.stride[1];
    if (y.stride[1] == 1) {
      for (int64_t row = 0; row < tile.rows; ++row) {
        const float* const from = values + row * kTileCols;
        for_each_vector<float>(tile.cols,
                               [&](int64_t i, auto n) { store(out + places[row] + i, load(from + i, n), n); });
      }
      return;
    }
    float line[kTileRows];
    for (int64_t col = 0; col < tile.cols; ++col) {
      for (int64_t row = 0; row < tile.rows; ++row) line[row] = values[row * kTileCols + col];
      for (int64_t first = 0, end; first < tile.rows; first = end) {
        for (end = first + 1; end < tile.rows && places[end] == places[end - 1] + 1;) ++end;
        T* const to = out + col * y.stride[1] + places[first];
        for_each_vector<float>(end - first, [&](int64_t i, auto n) { store(to + i, load(line + first + i, n), n); });
      }
    }
  });
}

WARPWRIGHT_ISA_END
