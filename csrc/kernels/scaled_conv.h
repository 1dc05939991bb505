// Params and launcher of the scaled_conv family: convolutions of 8-bit tensors that carry scales.

#pragma once

#include "kernels/conv.h"
#include "kernels/scaled.h"

namespace warpwright {

// y = activation(convolution of dequantised x and w + bias + dequantised residual) / output_scale. x and w are 8-bit
// floats, or both are int8. A null scale is 1.
struct ScaledConvParams {
  // x and w of one byte an element; no pre-activation, no norm, no statistics. Each tensor has a dtype of its own,
  // below.
  ConvParams conv;
  const float* input_scale;     // one
  const float* weight_scale;    // one, or (filters) with this stride
  const float* residual_scale;  // one, for a residual of 8 bits
  const float* output_scale;    // one, for an output of 8 bits
  int64_t weight_scale_stride;
  DType input_dtype, weight_dtype;
  DType bias_dtype;  // float32, float16 or bfloat16; residual and output also an 8-bit one
  DType residual_dtype, output_dtype;
};

}  // namespace warpwright

WARPWRIGHT_DECLARE_LAUNCHER(scaled_convolution, ScaledConvParams)
