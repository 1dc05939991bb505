"""The public operators, one module a family."""

from warpwright.ops.activation import swiglu
from warpwright.ops.conv import conv2d
from warpwright.ops.loss import cross_entropy
from warpwright.ops.matmul import linear
from warpwright.ops.norm import layer_norm, rms_norm
from warpwright.ops.optim import adamw_
from warpwright.ops.quantize import dequantize_fp8, quantize_fp8
from warpwright.ops.rotary import rotary_embedding

__all__ = [
    "adamw_",
    "conv2d",
    "cross_entropy",
    "dequantize_fp8",
    "layer_norm",
    "linear",
    "quantize_fp8",
    "rms_norm",
    "rotary_embedding",
    "swiglu",
]
