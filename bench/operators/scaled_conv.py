"""Convolutions of 8-bit tensors with scales. Sizes and labels are those of conv.py."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from warpwright.bench.case import Draw, operator
from warpwright.bench.operators._common import Activation, suffix
from warpwright.bench.operators.conv import Sizes, conv_label, each, laid_out, short, smaller_conv
from warpwright.testing import Sample

_FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "int8": torch.int8}
Format = Literal["e4m3", "e5m2", "int8"]


def _operand(draw: Draw, shape: tuple[int, ...], format: Format, channels_last: bool) -> Tensor:
    if format == "int8":
        return laid_out(draw.integers(*shape, low=-127, high=128).to(torch.int8), channels_last)
    return laid_out(draw.tensor(*shape, low=-400, high=400, grad=False, dtype=_FORMATS[format]), channels_last)


def _draw(
    draw: Draw,
    dims: int,
    *,
    batch: int,
    channels: int,
    filters: int | None,
    size: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes | None,
    groups: int,
    format: Format,
    bias: bool,
    activation: Activation | None,
    residual: bool,
    out: Literal["e4m3", "e5m2"] | None,
    channels_last: bool,
) -> Sample:
    """The case's dtype is that of the result, unless that is 8-bit floats (`out`), and of the residual."""
    sizes, kernels, strides = (each(v, dims) for v in (size, kernel, stride))
    paddings = [(k - 1) // 2 for k in kernels] if padding is None else each(padding, dims)
    filters = channels if filters is None else filters
    if groups < 1 or channels % groups or filters % groups:
        raise RuntimeError(
            f"warpwright: bench: groups must divide {channels} channels and {filters} filters, got {groups}"
        )
    largest = 127 if format == "int8" else 448
    terms = channels // groups * torch.Size(kernels).numel()

    def scale(*shape: int, unit: float) -> Tensor:
        return draw.tensor(*shape, low=0.5 * unit, high=unit, grad=False, dtype=torch.float32)

    x = _operand(draw, (batch, channels, *sizes), format, channels_last)
    w = _operand(draw, (filters, channels // groups, *kernels), format, channels_last)
    # Such that results are near 1.
    scales = scale(unit=1 / largest), scale(filters, unit=3 / terms**0.5 / largest)
    kwargs: dict[str, Any] = {"out_dtype": _FORMATS[out] if out else draw.dtype}
    if out:
        kwargs["output_scale"] = scale(unit=1 / 32)
    if activation:
        kwargs["activation"] = activation
    if residual:
        out_sizes = [(s + 2 * p - k) // t + 1 for s, p, k, t in zip(sizes, paddings, kernels, strides, strict=True)]
        kwargs["residual"] = laid_out(draw.tensor(batch, filters, *out_sizes, grad=False), channels_last)
    depthwise = groups == channels > 1
    label = conv_label(
        batch, channels, filters, kernels, strides, [1] * dims, paddings, groups, depthwise, sizes, channels_last
    )
    label += f" {format}{f' to {out}' if out else ''}{suffix(bias=bias, residual=residual, activation=activation)}"
    offset = draw.tensor(filters, grad=False, dtype=torch.float32) if bias else None
    return Sample(label, (x, w, *scales, offset, short(strides), short(paddings), 1, groups), kwargs)


@operator("scaled_conv1d", smaller=smaller_conv)
def scaled_conv1d(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    filters: int | None = None,
    size: int,
    kernel: int,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    format: Format = "int8",
    bias: bool = False,
    activation: Activation | None = None,
    channels_last: bool = False,
) -> Sample:
    return _draw(
        draw, 1, batch=batch, channels=channels, filters=filters, size=size, kernel=kernel, stride=stride,
        padding=padding, groups=groups, format=format, bias=bias, activation=activation, residual=False, out=None,
        channels_last=channels_last,
    )  # fmt: skip


@operator("scaled_conv2d", smaller=smaller_conv)
def scaled_conv2d(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    filters: int | None = None,
    size: Sizes,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Sizes | None = None,
    groups: int = 1,
    format: Format = "int8",
    bias: bool = False,
    activation: Activation | None = None,
    residual: bool = False,
    out: Literal["e4m3", "e5m2"] | None = None,
    channels_last: bool = False,
) -> Sample:
    """No int8 result: a number between two integers may be either, and float64 knows one of them."""
    return _draw(
        draw, 2, batch=batch, channels=channels, filters=filters, size=size, kernel=kernel, stride=stride,
        padding=padding, groups=groups, format=format, bias=bias, activation=activation, residual=residual, out=out,
        channels_last=channels_last,
    )  # fmt: skip


@operator("scaled_conv3d", smaller=smaller_conv)
def scaled_conv3d(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    filters: int | None = None,
    size: Sizes,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Sizes | None = None,
    groups: int = 1,
    format: Format = "int8",
    bias: bool = False,
    channels_last: bool = False,
) -> Sample:
    """Sizes are (depth, height, width)."""
    return _draw(
        draw, 3, batch=batch, channels=channels, filters=filters, size=size, kernel=kernel, stride=stride,
        padding=padding, groups=groups, format=format, bias=bias, activation=None, residual=False, out=None,
        channels_last=channels_last,
    )  # fmt: skip
