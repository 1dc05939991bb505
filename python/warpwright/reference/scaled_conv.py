"""Definitions of the scaled_conv family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._conv import channels_last, in_format, output_sizes
from warpwright.ops.quantize import QUANTIZED_TYPES
from warpwright.reference._activation import activate
from warpwright.reference.conv import Convolution
from warpwright.reference.quantize import encoded


def scaled_convolution(
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    output_scale: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    out_dtype: torch.dtype,
) -> Tensor:
    sizes = output_sizes("scaled_convolution", input, weight, stride, padding, dilation, False, [], groups)
    conv = Convolution(input.shape[2:], sizes[2:], weight.shape[2:], stride, padding, dilation, groups)
    # float64 holds sums of integers up to 2^53.
    total = conv.fprop(input.double(), weight.double()).float()
    by_filter = (-1, *[1] * len(stride))
    total = total * input_scale.reshape(()) * weight_scale.reshape(by_filter)
    if bias is not None:
        total = total + bias.float().view(by_filter)
    if residual is not None:
        addend = residual.float()
        total = total + (addend if residual_scale is None else addend * residual_scale.reshape(()))
    value = activate(activation, total)
    if output_scale is not None:
        value = value / output_scale.reshape(())
    output = encoded(value, out_dtype, None) if out_dtype in QUANTIZED_TYPES else value.to(out_dtype)
    return in_format(output, channels_last(input, weight))
