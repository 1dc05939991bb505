"""Convolutions of one, two and three dimensions.

`size`, `kernel`, `stride`, `padding` and `dilation` are one number for all dimensions, or a list with one for each.
Labels read as "N32 64->128 3x3 s2 @56": batch, channels, filters, kernel, stride, size; what is as usual is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import Activation, draw_weight, suffix
from warpwright.testing import Sample

Sizes = int | list[int]

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def each(value: Sizes, dims: int) -> list[int]:
    found = [value] * dims if isinstance(value, int) else value
    if len(found) != dims:
        raise RuntimeError(f"warpwright: bench: a {dims}d convolution takes 1 or {dims} numbers, got {value}")
    return found


def _alike(values: Sequence[int]) -> bool:
    return len(set(values)) == 1


def short(values: Sequence[int]) -> Any:
    """One number where all are alike: kernels of users should not have to take lists apart."""
    return values[0] if _alike(values) else list(values)


def _text(values: Sequence[int]) -> str:
    """ "56" for a square or a cube, else "161x700"."""
    return str(values[0]) if _alike(values) else "x".join(map(str, values))


def laid_out(tensor: Tensor, channels_last: bool) -> Tensor:
    """The same leaf in the wanted memory format."""
    layout = _LAST[tensor.dim()] if channels_last else torch.contiguous_format
    return tensor.detach().contiguous(memory_format=layout).requires_grad_(tensor.requires_grad)


def smaller_conv(parameters: dict[str, Any]) -> dict[str, Any] | None:
    """Fewer images, then smaller ones, which stay twice as large as what the kernel reaches over."""
    fewer = halve("batch")(parameters)
    if fewer is not None:
        return fewer
    size, kernel, dilation = parameters["size"], parameters["kernel"], parameters.get("dilation", 1)
    largest = [value if isinstance(value, int) else max(value) for value in (kernel, dilation)]
    reach = 2 * largest[0] * largest[1]
    sizes = [size] if isinstance(size, int) else size
    halved = [max(s // 2, min(s, reach)) for s in sizes]
    if halved == sizes:
        return None
    return parameters | {"size": halved[0] if isinstance(size, int) else halved}


# ---- conv1d, conv2d and conv3d ----


def conv_label(
    batch: int,
    channels: int,
    filters: int,
    kernels: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    paddings: Sequence[int],
    groups: int,
    depthwise: bool,
    sizes: Sequence[int],
    channels_last: bool,
) -> str:
    usual = [d * (k - 1) // 2 for k, d in zip(kernels, dilations, strict=True)]
    label = f"N{batch} {channels}->{filters} {'x'.join(map(str, kernels))}"
    label += "" if _text(strides) == "1" else f" s{_text(strides)}"
    label += "" if list(paddings) == usual else f" p{_text(paddings)}"
    label += "" if _text(dilations) == "1" else f" d{_text(dilations)}"
    label += " dw" if depthwise else f" g{groups}" if groups > 1 else ""
    return f"{label} @{_text(sizes)}{' NHWC' if channels_last else ''}"


def draw_conv(
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
    dilation: Sizes,
    groups: int,
    depthwise: bool,
    bias: bool,
    activation: Activation | None,
    residual: bool,
    channels_last: bool,
) -> Sample:
    sizes, kernels, strides, dilations = (each(v, dims) for v in (size, kernel, stride, dilation))
    usual = [d * (k - 1) // 2 for k, d in zip(kernels, dilations, strict=True)]
    paddings = usual if padding is None else each(padding, dims)
    filters = channels if filters is None else filters
    groups = channels if depthwise else groups
    if groups < 1 or channels % groups or filters % groups:
        raise RuntimeError(
            f"warpwright: bench: groups must divide {channels} channels and {filters} filters, got {groups}"
        )
    x = laid_out(draw.tensor(batch, channels, *sizes), channels_last)
    weight = draw_weight(draw, filters, channels // groups, *kernels, fan_in=channels // groups * prod(kernels))
    args = (x, laid_out(weight, channels_last), draw.tensor(filters) if bias else None)
    kwargs: dict[str, Any] = {"activation": activation} if activation else {}
    if residual:
        reach = [d * (k - 1) + 1 for k, d in zip(kernels, dilations, strict=True)]
        out = [(s + 2 * p - r) // t + 1 for s, p, r, t in zip(sizes, paddings, reach, strides, strict=True)]
        kwargs["residual"] = laid_out(draw.tensor(batch, filters, *out), channels_last)
    label = conv_label(
        batch, channels, filters, kernels, strides, dilations, paddings, groups, depthwise, sizes, channels_last
    )
    label += suffix(bias=bias, residual=residual, activation=activation)
    return Sample(label, (*args, short(strides), short(paddings), short(dilations), groups), kwargs)


@operator("conv1d", smaller=smaller_conv)
def conv1d(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    filters: int | None = None,
    size: int,
    kernel: int,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
    groups: int = 1,
    depthwise: bool = False,
    bias: bool = False,
    activation: Activation | None = None,
) -> Sample:
    return draw_conv(
        draw, 1, batch=batch, channels=channels, filters=filters, size=size, kernel=kernel, stride=stride,
        padding=padding, dilation=dilation, groups=groups, depthwise=depthwise, bias=bias, activation=activation,
        residual=False, channels_last=False,
    )  # fmt: skip


@operator("conv2d", smaller=smaller_conv)
def conv2d(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    filters: int | None = None,
    size: Sizes,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Sizes | None = None,
    dilation: Sizes = 1,
    groups: int = 1,
    depthwise: bool = False,
    bias: bool = False,
    activation: Activation | None = None,
    residual: bool = False,
    channels_last: bool = False,
) -> Sample:
    """As many filters as channels, and the padding that keeps the size at stride 1, unless they are given."""
    return draw_conv(
        draw, 2, batch=batch, channels=channels, filters=filters, size=size, kernel=kernel, stride=stride,
        padding=padding, dilation=dilation, groups=groups, depthwise=depthwise, bias=bias, activation=activation,
        residual=residual, channels_last=channels_last,
    )  # fmt: skip


@operator("conv3d", smaller=smaller_conv)
def conv3d(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    filters: int | None = None,
    size: Sizes,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Sizes | None = None,
    dilation: Sizes = 1,
    groups: int = 1,
    depthwise: bool = False,
    bias: bool = False,
    channels_last: bool = False,
) -> Sample:
    """Sizes are (depth, height, width)."""
    return draw_conv(
        draw, 3, batch=batch, channels=channels, filters=filters, size=size, kernel=kernel, stride=stride,
        padding=padding, dilation=dilation, groups=groups, depthwise=depthwise, bias=bias, activation=None,
        residual=False, channels_last=channels_last,
    )  # fmt: skip


# ---- transposed ----


def _draw_transpose(
    draw: Draw,
    dims: int,
    *,
    batch: int,
    channels: int,
    filters: int,
    size: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    bias: bool,
    channels_last: bool,
) -> Sample:
    numbers = (size, kernel, stride, padding, output_padding)
    sizes, kernels, strides, paddings, ends = (each(v, dims) for v in numbers)
    x = laid_out(draw.tensor(batch, channels, *sizes), channels_last)
    # Each output sums over the kernel's elements that one stride brings past it.
    weight = draw_weight(draw, channels, filters, *kernels, fan_in=max(1, channels * prod(kernels) // prod(strides)))
    label = f"N{batch} {channels}->{filters} {'x'.join(map(str, kernels))} s{_text(strides)} p{_text(paddings)}"
    label += f" op{_text(ends)}" if any(ends) else ""
    label += f" @{_text(sizes)}{' NHWC' if channels_last else ''}{suffix(bias=bias)}"
    args = (x, laid_out(weight, channels_last), draw.tensor(filters) if bias else None)
    return Sample(label, (*args, short(strides), short(paddings), short(ends)))


@operator("conv_transpose1d", smaller=smaller_conv)
def conv_transpose1d(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    filters: int,
    size: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    bias: bool = False,
) -> Sample:
    return _draw_transpose(
        draw, 1, batch=batch, channels=channels, filters=filters, size=size, kernel=kernel, stride=stride,
        padding=padding, output_padding=output_padding, bias=bias, channels_last=False,
    )  # fmt: skip


@operator("conv_transpose2d", smaller=smaller_conv)
def conv_transpose2d(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    filters: int,
    size: Sizes,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    bias: bool = False,
    channels_last: bool = False,
) -> Sample:
    return _draw_transpose(
        draw, 2, batch=batch, channels=channels, filters=filters, size=size, kernel=kernel, stride=stride,
        padding=padding, output_padding=output_padding, bias=bias, channels_last=channels_last,
    )  # fmt: skip


@operator("conv_transpose3d", smaller=smaller_conv)
def conv_transpose3d(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    filters: int,
    size: Sizes,
    kernel: Sizes,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    bias: bool = False,
    channels_last: bool = False,
) -> Sample:
    """Sizes are (depth, height, width)."""
    return _draw_transpose(
        draw, 3, batch=batch, channels=channels, filters=filters, size=size, kernel=kernel, stride=stride,
        padding=padding, output_padding=output_padding, bias=bias, channels_last=channels_last,
    )  # fmt: skip
