"""The stages of a batch norm over several processes: on images, or on what the processes send."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import suffix
from warpwright.bench.operators.norm import draw_images, image_label
from warpwright.testing import Sample


@operator("batch_norm_moments", smaller=halve("batch", "channels"))
def batch_norm_moments(draw: Draw, *, batch: int, channels: int, size: int, channels_last: bool = False) -> Sample:
    x = draw_images(draw, batch, channels, size, channels_last).detach()
    return Sample(image_label(batch, channels, size, channels_last), (x,))


@operator("batch_norm_join", smaller=halve("processes", "channels"))
def batch_norm_join(draw: Draw, *, processes: int, channels: int) -> Sample:
    wide = torch.float64 if draw.dtype == torch.float64 else torch.float32
    means = draw.tensor(processes, channels, grad=False).to(wide)
    moments = torch.stack((means, means.square() + 1, torch.full_like(means, 1000)), 1)
    return Sample(f"{processes} processes, C{channels}", (moments,))


def _backward(
    draw: Draw, batch: int, channels: int, size: int, channels_last: bool, residual: bool, activation: str | None
) -> tuple[str, tuple[Tensor, ...], dict[str, Any]]:
    def images() -> Tensor:
        return draw_images(draw, batch, channels, size, channels_last).detach()

    grad, x = images(), images()
    wide = torch.float64 if draw.dtype == torch.float64 else torch.float32
    mean, rstd = torch.zeros(channels, dtype=wide, device=x.device), torch.ones(channels, dtype=wide, device=x.device)
    affine = draw.tensor(channels, grad=False), draw.tensor(channels, grad=False)
    kwargs: dict[str, Any] = {"activation": activation} if activation else {}
    if residual:
        kwargs["residual"] = images()
    label = image_label(batch, channels, size, channels_last) + suffix(residual=residual, activation=activation)
    return label, (grad, x, *affine, mean, rstd), kwargs


@operator("batch_norm_sums", smaller=halve("batch", "channels"))
def batch_norm_sums(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    size: int,
    channels_last: bool = False,
    residual: bool = False,
    activation: Literal["relu", "silu"] | None = None,
) -> Sample:
    return Sample(*_backward(draw, batch, channels, size, channels_last, residual, activation))


@operator("batch_norm_input_grad", smaller=halve("batch", "channels"))
def batch_norm_input_grad(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    size: int,
    channels_last: bool = False,
    residual: bool = False,
    activation: Literal["relu", "silu"] | None = None,
) -> Sample:
    """As of two processes with batches alike."""
    label, args, kwargs = _backward(draw, batch, channels, size, channels_last, residual, activation)
    mean = args[4]
    sums = draw.tensor(2, channels, grad=False).to(mean.dtype)
    return Sample(label, (*args, sums, torch.full_like(mean, 2 * batch * size * size)), kwargs)
