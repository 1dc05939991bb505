"""Normalisations: rows of `width` elements, or `channels` of images of `size` x `size`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import suffix
from warpwright.testing import Cost, Sample
from warpwright.testing.spec import FLOAT_TYPES, nbytes

_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {None: lambda x: x, "relu": torch.relu, "silu": F.silu}
#: Operations per element.
_ACTIVATION_FLOPS = {None: 0, "relu": 1, "silu": 4}


@operator("rms_norm", smaller=halve("rows"))
def rms_norm(draw: Draw, *, rows: int, width: int, residual: bool = False) -> Sample:
    kwargs = {"residual": draw.tensor(rows, width)} if residual else {}
    args = (draw.tensor(rows, width), (width,), draw.tensor(width), 1e-6)
    return Sample(f"{rows} x {width}{suffix(residual=residual)}", args, kwargs)


@operator("layer_norm", smaller=halve("rows"))
def layer_norm(draw: Draw, *, rows: int, width: int, residual: bool = False) -> Sample:
    kwargs = {"residual": draw.tensor(rows, width)} if residual else {}
    args = (draw.tensor(rows, width), (width,), draw.tensor(width), draw.tensor(width))
    return Sample(f"{rows} x {width}{suffix(residual=residual)}", args, kwargs)


@operator("l2_normalize", smaller=halve("rows"))
def l2_normalize(draw: Draw, *, rows: int, width: int) -> Sample:
    return Sample(f"{rows} x {width}", (draw.tensor(rows, width),))


# ---- softmax ----


def _torch_softmax(input: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(input, dim)


def _softmax_cost(input: Tensor, dim: int = -1) -> Cost:
    """Maximum, difference, exponential, sum, quotient."""
    return Cost(5 * input.numel(), 2 * nbytes(input))


@operator(
    "softmax",
    smaller=halve("rows"),
    family="norm",
    torch_op=_torch_softmax,
    cost=_softmax_cost,
    dtypes=FLOAT_TYPES,
    gradient=True,
)
def softmax(draw: Draw, *, rows: int, width: int) -> Sample:
    return Sample(f"{rows} x {width}", (draw.tensor(rows, width, low=-4, high=4), -1))


# ---- group_norm and batch_norm ----


def _images(draw: Draw, batch: int, channels: int, size: int, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return draw.tensor(batch, channels, size, size, grad=False).contiguous(memory_format=layout).requires_grad_()


def _image_label(batch: int, channels: int, size: int, channels_last: bool) -> str:
    return f"N{batch} C{channels} @{size}{' NHWC' if channels_last else ''}"


def _torch_group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Tensor:
    return _ACTIVATIONS[activation](F.group_norm(input, num_groups, weight, bias, eps))


def _group_norm_cost(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Cost:
    """As layer_norm's, and the activation."""
    return Cost((7 + _ACTIVATION_FLOPS[activation]) * input.numel(), 2 * nbytes(input) + nbytes(weight, bias))


@operator(
    "group_norm",
    smaller=halve("batch", "size"),
    family="norm",
    torch_op=_torch_group_norm,
    cost=_group_norm_cost,
    dtypes=FLOAT_TYPES,
    gradient=True,
)
def group_norm(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    size: int,
    groups: int = 32,
    activation: Literal["silu"] | None = None,
    channels_last: bool = False,
) -> Sample:
    x = _images(draw, batch, channels, size, channels_last)
    label = _image_label(batch, channels, size, channels_last)
    return Sample(
        f"{label} g{groups}{suffix(activation=activation)}",
        (x, groups, draw.tensor(channels), draw.tensor(channels)),
        {"activation": activation} if activation else {},
    )


def _torch_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    normal = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _ACTIVATIONS[activation](normal if residual is None else normal + residual)


def _batch_norm_cost(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Cost:
    """In training as layer_norm's; in inference each channel has one factor and one summand."""
    each = (7 if training else 2) + _ACTIVATION_FLOPS[activation] + (residual is not None)
    moved = 2 * nbytes(input) + nbytes(residual, running_mean, running_var, weight, bias)
    return Cost(each * input.numel(), moved)


@operator(
    "batch_norm",
    smaller=halve("batch", "channels"),
    family="norm",
    torch_op=_torch_batch_norm,
    cost=_batch_norm_cost,
    dtypes=FLOAT_TYPES,
    gradient=True,
)
def batch_norm(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    size: int,
    training: bool = True,
    activation: Literal["relu", "silu"] | None = None,
    residual: bool = False,
    channels_last: bool = False,
) -> Sample:
    """In training without running statistics, so that nothing is written."""
    x = _images(draw, batch, channels, size, channels_last)
    running: tuple[Tensor | None, Tensor | None] = (None, None)
    if not training:
        running = (draw.tensor(channels, grad=False), draw.tensor(channels, low=0.5, high=2, grad=False))
    kwargs: dict[str, object] = {"activation": activation} if activation else {}
    if residual:
        kwargs["residual"] = _images(draw, batch, channels, size, channels_last)
    label = _image_label(batch, channels, size, channels_last)
    return Sample(
        label + suffix(mode=None if training else "inference", residual=residual, activation=activation),
        (x, *running, draw.tensor(channels), draw.tensor(channels), training),
        kwargs,
    )
