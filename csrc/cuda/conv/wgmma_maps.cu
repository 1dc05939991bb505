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
  if (!ptx::tensor_map_takes(layout) || !ptx::im2col_fault(layout, box).empty()) return false;
  const int spatial = layout.rank - 2;
  return std::all_of(reach, reach + spatial, [&](int64_t r) { return r <= ptx::most_im2col_offset(spatial); });
}

int conv_spatial_dims(const ConvParams& p) {
  for (int d = 0; d < kWidth; ++d) {
    if (p.x_size[d] != 1 || p.y_size[d] != 1 || p.kernel[d] != 1 || p.padding[d] != 0) return kConvDims - d;
  }
  return 1;
}

ConvPixelsMap conv_pixels_map(const ConvParams& p, const ConvTensor& tensor, int64_t channels,
                              const int64_t (&size)[kConvDims], const ConvPositions (&positions)[kConvDims],
                              int pixels) {
  const int spatial = conv_spatial_dims(p);
  ConvPixelsMap map{};
  map.layout = {tensor.data, p.dtype, 2 + spatial, {channels}, {tensor.stride[1]}};
  for (int d = 0; d < spatial; ++d) {
    const ConvPositions& at = positions[d];
    map.layout.size[1 + d] = size[kWidth - d];
    map.layout.stride[1 + d] = tensor.stride[2 + kWidth - d];
    map.box.step[1 + d] = as_int(at.step);
    // The corners let a filter begin at each position, and nowhere else.
    map.box.lower[d] = as_int(at.first);
    map.box.upper[d] = as_int(at.first + (at.count - 1) * at.step + 1 - size[kWidth - d]);
    map.reach[d] = (at.taps - 1) * at.dilation;
  }
  map.layout.size[1 + spatial] = p.batch;
  map.layout.stride[1 + spatial] = tensor.stride[0];
  map.box.channels = span_of(p.dtype);
  map.box.pixels = pixels;
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
