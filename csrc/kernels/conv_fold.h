// Params of the CPU's folding of a batch norm with constant statistics into the convolution before it.

#pragma once

#include "kernels/channel_norm.h"

namespace warpwright {

// norm(x * w + bias) = x * scaled + shift, in float32.
struct ConvFoldParams {
  const float* w;                      // (filters, size): of each filter its elements, in any order
  const float* conv_bias;              // (filters), or null
  PerChannel mean, var, weight, bias;  // (filters); of weight and bias data is null without them
  float* scaled;                       // (filters, size)
  float* shift;                        // (filters)
  int64_t filters, size;
  double eps;
};

}  // namespace warpwright

namespace warpwright::cpu {
void conv_fold(const ConvFoldParams& params, Stream);
}  // namespace warpwright::cpu
