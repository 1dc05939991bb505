"""Convolutions of 8-bit tensors that carry scales."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import check_activation, check_same_device, require, shape_text
from warpwright._conv import channels_last, check_geometry, empty_in_format, op_name, output_sizes
from warpwright.ops.conv import Numbers, check_rank, conv_geometry
from warpwright.ops.quantize import FLOAT8_TYPES, QUANTIZED_TYPES
from warpwright.ops.scaled import MOST_INT8_TERMS, OUT_DTYPES


def scaled_conv1d(
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    output_scale: Tensor | None = None,
) -> Tensor:
    """`activation(conv1d(input * input_scale, weight * weight_scale) + bias + residual)` of 8-bit tensors.

    Args:
        input: (batch, channels, length) or (channels, length).
        weight: (filters, channels / groups, kernel length).
        input_scale, weight_scale, bias, stride, padding, dilation, groups, residual, residual_scale, activation,
            out_dtype, output_scale: as in `scaled_conv2d`, of one dimension.

    Returns:
        (batch, filters, out length) in out_dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit.

    Layouts, sums and rounding are `scaled_conv2d`'s.
    """
    return _scaled_conv(
        1, input, weight, input_scale, weight_scale, bias, residual, residual_scale, output_scale, stride, padding,
        dilation, groups, activation, out_dtype,
    )  # fmt: skip


def scaled_conv2d(
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    output_scale: Tensor | None = None,
) -> Tensor:
    """`activation(conv2d(input * input_scale, weight * weight_scale) + bias + residual)` of 8-bit tensors.

    With an 8-bit out_dtype that is divided by output_scale and rounded as `quantize` does it, so that a chain of
    convolutions stays in 8 bits:

        x, x_scale = warpwright.ops.quantize(images, dtype=torch.int8, granularity="tensor")
        w, w_scale = warpwright.ops.quantize(weight.flatten(1), dtype=torch.int8)
        y = warpwright.ops.scaled_conv2d(
            x, w.view(weight.shape), x_scale, w_scale, bias, activation="relu", out_dtype=torch.int8,
            output_scale=y_scale,
        )

    Args:
        input: (batch, channels, height, width) or (channels, height, width), torch.float8_e4m3fn, torch.float8_e5m2 or
            torch.int8; NCHW, channels_last or any other strides. Quantized symmetrically: zero is 0, so that padding
            is exact.
        weight: (filters, channels / groups, kernel height, kernel width), either 8-bit float where input is one,
            torch.int8 where input is; any strides. The tensor cores' fastest kernels take both channels_last with
            whole sixteens of channels a group.
        input_scale: one float32 element.
        weight_scale: float32, any strides: one element; or (filters,) or (filters, 1), one for each filter.
        bias: (filters,), float32, float16 or bfloat16, or None.
        stride, padding, dilation, groups: as in `conv2d`.
        residual: like the output, added before the activation, or None: float32, float16 or bfloat16, or 8-bit floats
            or int8 with their residual_scale; any strides.
        residual_scale: one float32 element, with an 8-bit residual.
        activation: as in `linear`.
        out_dtype: float32, float16, bfloat16, torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8.
        output_scale: one float32 element, with an 8-bit out_dtype.

    Returns:
        (batch, filters, out height, out width) in out_dtype, channels_last when input or weight lies so, rounded once.
        In 8 bits to the nearest number, to the even one between two; what is too large becomes the largest (-127 to 127
        in int8), infinities too; a NaN stays one, in int8 it becomes 0.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit; int8 filters of 2^17
            elements or more, whose sums int32 may not hold.

    int8 products are added up in int32: exact, and rounded once to float32. 8-bit floats are multiplied as float16,
    which holds every one of them, and added up in a float32 sum for each 128 terms, which is added to a second one. On
    the CPU an input whose channels do not lie together is copied so that they do.

    Not differentiable: 8-bit numbers have no gradient.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", 2018, without zero points.
    """
    return _scaled_conv(
        2, input, weight, input_scale, weight_scale, bias, residual, residual_scale, output_scale, stride, padding,
        dilation, groups, activation, out_dtype,
    )  # fmt: skip


def scaled_conv3d(
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    residual_scale: Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    output_scale: Tensor | None = None,
) -> Tensor:
    """`activation(conv3d(input * input_scale, weight * weight_scale) + bias + residual)` of 8-bit tensors.

    Args:
        input: (batch, channels, depth, height, width) or without batch; NCDHW, channels_last_3d or any other strides.
        weight: (filters, channels / groups, kernel depth, kernel height, kernel width).
        input_scale, weight_scale, bias, stride, padding, dilation, groups, residual, residual_scale, activation,
            out_dtype, output_scale: as in `scaled_conv2d`, of three dimensions.

    Returns:
        (batch, filters, out depth, out height, out width) in out_dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit.

    Layouts, sums and rounding are `scaled_conv2d`'s.
    """
    return _scaled_conv(
        3, input, weight, input_scale, weight_scale, bias, residual, residual_scale, output_scale, stride, padding,
        dilation, groups, activation, out_dtype,
    )  # fmt: skip


# ---- from the public arguments to the operator's ----


def _scaled_conv(
    dims: int,
    input: Tensor,
    weight: Tensor,
    input_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    residual_scale: Tensor | None,
    output_scale: Tensor | None,
    stride: Numbers,
    padding: Numbers | str,
    dilation: Numbers,
    groups: int,
    activation: str | None,
    out_dtype: torch.dtype,
) -> Tensor:
    op = f"scaled_conv{dims}d"
    geometry = conv_geometry(op, dims, weight, stride, padding, dilation)
    check_rank(op, dims, weight)
    unbatched = input.dim() == dims + 1
    if unbatched:
        input, residual = input.unsqueeze(0), residual if residual is None else residual.unsqueeze(0)
    tensors = (input, weight, input_scale, weight_scale, bias, residual, residual_scale, output_scale)
    output: Tensor = call("scaled_convolution", *tensors, *geometry, groups, activation or "none", out_dtype)
    return output.squeeze(0) if unbatched else output


# ---- argument checks, in the words of csrc/bindings/scaled_conv.cpp ----

_8_BIT = "torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8"
_ANY = f"float32, float16, bfloat16, {_8_BIT}"


def _check_dtypes(op: str, input: Tensor, weight: Tensor) -> None:
    require(input.dtype in QUANTIZED_TYPES, op, f"input must be {_8_BIT}, got {input.dtype}")
    known = (torch.int8,) if input.dtype == torch.int8 else FLOAT8_TYPES
    message = f"weight must be {' or '.join(map(str, known))}, as input is {input.dtype}, got {weight.dtype}"
    require(weight.dtype in known, op, message)


def _check_terms(op: str, input: Tensor, weight: Tensor) -> None:
    terms = weight.shape[1:].numel()
    message = f"int8 filters must have fewer than {MOST_INT8_TERMS} elements, whose sum int32 holds, got {terms}"
    require(input.dtype != torch.int8 or terms < MOST_INT8_TERMS, op, message)


def _check_scale(op: str, name: str, scale: Tensor, input: Tensor) -> None:
    check_same_device(op, name, scale, "input", input)
    require(scale.dtype == torch.float32, op, f"{name} must be torch.float32, got {scale.dtype}")


def _check_one_scale(op: str, name: str, scale: Tensor, input: Tensor) -> None:
    _check_scale(op, name, scale, input)
    require(scale.numel() == 1, op, f"{name} must have one element, got {shape_text(scale.shape)}")


def _check_scale_with(op: str, name: str, scale: Tensor | None, of: str, dtype: torch.dtype, input: Tensor) -> None:
    """`scale` goes with the 8-bit tensor `of`."""
    message = f"{name} must be given where {of} has 8 bits and only then, {of} is {dtype}"
    require((scale is not None) == (dtype in QUANTIZED_TYPES), op, message)
    if scale is not None:
        _check_one_scale(op, name, scale, input)


def _check_weight_scale(op: str, scale: Tensor, input: Tensor, filters: int) -> None:
    _check_scale(op, "weight_scale", scale, input)
    fits = scale.numel() == 1 or tuple(scale.shape) in ((filters,), (filters, 1))
    shapes = f"{shape_text((filters,))} or {shape_text((filters, 1))}"
    require(fits, op, f"weight_scale must have one element or shape {shapes}, got {shape_text(scale.shape)}")


def _check_bias(op: str, bias: Tensor, input: Tensor, filters: int) -> None:
    check_same_device(op, "bias", bias, "input", input)
    require(bias.dtype in OUT_DTYPES, op, f"bias must be float32, float16 or bfloat16, got {bias.dtype}")
    message = f"bias must have shape {shape_text((filters,))}, got {shape_text(bias.shape)}"
    require(tuple(bias.shape) == (filters,), op, message)


def _check_residual(op: str, residual: Tensor, input: Tensor, sizes: list[int]) -> None:
    check_same_device(op, "residual", residual, "input", input)
    known = residual.dtype in (*OUT_DTYPES, *QUANTIZED_TYPES)
    require(known, op, f"residual must be {_ANY}, got {residual.dtype}")
    message = f"residual must have the shape of the output {shape_text(sizes)}, got {shape_text(residual.shape)}"
    require(tuple(residual.shape) == tuple(sizes), op, message)


def _check(
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
) -> None:
    op = f"scaled_{op_name(weight, False)}"
    _check_dtypes(op, input, weight)
    check_geometry(op, input, weight, stride, padding, dilation, False, [], groups)
    sizes = output_sizes(op, input, weight, stride, padding, dilation, False, [], groups)
    _check_terms(op, input, weight)
    _check_one_scale(op, "input_scale", input_scale, input)
    _check_weight_scale(op, weight_scale, input, sizes[1])
    require(out_dtype in (*OUT_DTYPES, *QUANTIZED_TYPES), op, f"out_dtype must be {_ANY}, got {out_dtype}")
    _check_scale_with(op, "output_scale", output_scale, "out_dtype", out_dtype, input)
    if bias is not None:
        _check_bias(op, bias, input, sizes[1])
    if residual is not None:
        _check_residual(op, residual, input, sizes)
    message = "residual_scale must come with a residual"
    require(residual is not None or residual_scale is None, op, message)
    residual_dtype = torch.float32 if residual is None else residual.dtype
    _check_scale_with(op, "residual_scale", residual_scale, "residual", residual_dtype, input)
    check_activation(op, activation)


def _fake(
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
    return empty_in_format(input.new_empty(0, dtype=out_dtype), sizes, channels_last(input, weight))


_registry.define("scaled_convolution", family="scaled_conv", check=_check, fake=_fake)
