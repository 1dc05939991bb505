// See wgmma_maps.h. Host code alone.

#include <algorithm>

#include "cuda/conv/wgmma_maps.h"
#include "cuda/tile/wgmma_operand.cuh"

namespace warpwright::cuda {
namespace {

constexpr int kWidth = kConvDims - 1;  // Of ConvParams' dimensions; the tensor maps' run the other way.

// What is out of every range stays so as an int.
int as_int(int64_t value) {
  constexpr int64_t kFar = 1 << 30;
  return static_cast<int>(std::clamp(value, -kFar, kFar));
}

}  // namespace

bool ConvPixelsMap::fits() const {
  if (!ptx::tensor_map_takes(layout)) return false;
  if (dims() == 0) return true;
  const auto within = [&](int64_t r) { return r <= ptx::most_im2col_offset(dims()); };
  return ptx::im2col_fault(layout, box).empty() && std::all_of(reach, reach + dims(), within);
}

ptx::TensorMap ConvPixelsMap::encode() const {
  if (dims() > 0) return ptx::encode_im2col(layout, box, kOperandSwizzle);
  return ptx::encode_tiled(layout, {{box.channels, box.pixels}}, kOperandSwizzle);
}

ConvPixelsMap conv_pixels_map(const ConvParams& p, const ConvTensor& tensor, int64_t channels,
                              const int64_t (&size)[kConvDims], const ConvPositions (&positions)[kConvDims],
                              int pixels) {
  ConvPixelsMap map{};
  map.box.channels = span_of(p.dtype);
  map.box.pixels = pixels;
  map.layout = {tensor.data, p.dtype, 2, {channels, p.batch}, {tensor.stride[1], tensor.stride[0]}};
  const int64_t even = conv_pixel_stride(tensor, p.batch, size, channels);
  int dims = 0;
  bool single = even != 0;
  for (int d = 0; d < kConvDims; ++d) {
    const ConvPositions& at = positions[d];
    const bool whole = at.first == 0 && at.reach == 0 && at.count == size[kWidth - d];
    single = single && whole && (at.step == 1 || at.count == 1);
    if (!whole || at.count != 1) dims = d + 1;  // Dimensions of one element and one tap are left out.
  }
  if (single) {
    map.layout.size[1] = p.batch * size[0] * size[1] * size[2];
    map.layout.stride[1] = even;
    return map;
  }
  dims = std::max(dims, 1);
  map.layout.rank = 2 + dims;
  map.layout.size[1 + dims] = p.batch;
  map.layout.stride[1 + dims] = tensor.stride[0];
  for (int d = 0; d < dims; ++d) {
    const ConvPositions& at = positions[d];
    map.layout.size[1 + d] = size[kWidth - d];
    map.layout.stride[1 + d] = tensor.stride[2 + kWidth - d];
    map.box.step[1 + d] = as_int(at.step);
    // The corners let a filter begin at each position, and nowhere else.
    map.box.lower[d] = as_int(at.first);
    map.box.upper[d] = as_int(at.first + (at.count - 1) * at.step + 1 - size[kWidth - d]);
    map.reach[d] = at.reach;
  }
  return map;
}

ptx::TensorLayout conv_weight_layout(const ConvParams& p) {
  const int64_t* const stride = p.w.stride;
  return {p.w.data,
          p.dtype,
          2 + kConvDims,
          {p.group_channels(), p.kernel[2], p.kernel[1], p.kernel[0], p.filters},
          {stride[1], stride[4], stride[3], stride[2], stride[0]}};
}

int64_t conv_pixel_stride(const ConvTensor& tensor, int64_t batch, const int64_t (&size)[kConvDims],
                          int64_t otherwise) {
  int64_t pixels = 1, stride = 0;
  for (int d = kConvDims; d >= 0; --d) {  // Width, height, depth, batch.
    const int64_t count = d == 0 ? batch : size[d - 1], step = tensor.stride[d == 0 ? 0 : 1 + d];
    if (count == 1) continue;
    if (pixels == 1) stride = step;
    if (step != stride * pixels) return 0;
    pixels *= count;
  }
  return pixels == 1 ? otherwise : stride;
}

}  // namespace warpwright::cuda
