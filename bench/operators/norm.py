"""Normalisations: rows of `width` elements, or `channels` of images of `size` x `size`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import suffix
from warpwright.testing import Sample


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


# ---- group_norm and batch_norm ----


def draw_images(draw: Draw, batch: int, channels: int, size: int, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return draw.tensor(batch, channels, size, size, grad=False).contiguous(memory_format=layout).requires_grad_()


def image_label(batch: int, channels: int, size: int, channels_last: bool) -> str:
    return f"N{batch} C{channels} @{size}{' NHWC' if channels_last else ''}"


@operator("group_norm", smaller=halve("batch", "size"))
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
    x = draw_images(draw, batch, channels, size, channels_last)
    label = image_label(batch, channels, size, channels_last)
    return Sample(
        f"{label} g{groups}{suffix(activation=activation)}",
        (x, groups, draw.tensor(channels), draw.tensor(channels)),
        {"activation": activation} if activation else {},
    )


@operator("instance_norm", smaller=halve("batch", "channels"))
def instance_norm(draw: Draw, *, batch: int, channels: int, size: int, channels_last: bool = False) -> Sample:
    x = draw_images(draw, batch, channels, size, channels_last)
    args = (x, None, None, draw.tensor(channels), draw.tensor(channels))
    return Sample(image_label(batch, channels, size, channels_last), args)


@operator("batch_norm", smaller=halve("batch", "channels"))
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
    x = draw_images(draw, batch, channels, size, channels_last)
    running: tuple[Tensor | None, Tensor | None] = (None, None)
    if not training:
        running = (draw.tensor(channels, grad=False), draw.tensor(channels, low=0.5, high=2, grad=False))
    kwargs: dict[str, object] = {"activation": activation} if activation else {}
    if residual:
        kwargs["residual"] = draw_images(draw, batch, channels, size, channels_last)
    label = image_label(batch, channels, size, channels_last)
    return Sample(
        label + suffix(mode=None if training else "inference", residual=residual, activation=activation),
        (x, *running, draw.tensor(channels), draw.tensor(channels), training),
        kwargs,
    )
