"""Convolutions with their batch norm: in training without running statistics, so that nothing is written, and in
inference."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from warpwright.bench.case import Draw, operator
from warpwright.bench.operators.conv import Sizes, draw_conv, smaller_conv
from warpwright.testing import Sample


def _smaller(parameters: dict[str, Any]) -> dict[str, Any] | None:
    """As a convolution's, while channels have more than one value."""
    found = smaller_conv(parameters)
    return found if found is None or found["size"] > found.get("stride", 1) else None


@operator("conv2d_batch_norm", smaller=_smaller)
def conv2d_batch_norm(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    filters: int | None = None,
    size: int,
    kernel: Sizes,
    stride: int = 1,
    padding: Sizes | None = None,
    dilation: Sizes = 1,
    groups: int = 1,
    depthwise: bool = False,
    bias: bool = False,
    activation: Literal["relu", "silu"] | None = None,
    residual: bool = False,
    channels_last: bool = False,
    training: bool = True,
) -> Sample:
    """The convolution is conv2d's of the same parameters; running statistics there are in inference alone."""
    sample = draw_conv(
        draw, 2, batch=batch, channels=channels, filters=filters, size=size, kernel=kernel, stride=stride,
        padding=padding, dilation=dilation, groups=groups, depthwise=depthwise, bias=bias, activation=activation,
        residual=residual, channels_last=channels_last,
    )  # fmt: skip
    x, weight, *rest = sample.args
    count = weight.shape[0]
    running: tuple[Any, Any] = (None, None)
    if not training:
        running = draw.tensor(count, grad=False), draw.tensor(count, low=0.5, high=1.5, grad=False)
    args = (x, weight, *running, draw.tensor(count), draw.tensor(count), *rest, training)
    return Sample(sample.name if training else f"{sample.name}, inference", args, sample.kwargs)


@operator("conv2d_moments", smaller=_smaller)
def conv2d_moments(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    filters: int | None = None,
    size: int,
    kernel: Sizes,
    stride: int = 1,
    padding: Sizes | None = None,
    bias: bool = False,
    channels_last: bool = False,
) -> Sample:
    sample = draw_conv(
        draw, 2, batch=batch, channels=channels, filters=filters, size=size, kernel=kernel, stride=stride,
        padding=padding, dilation=1, groups=1, depthwise=False, bias=bias, activation=None, residual=False,
        channels_last=channels_last,
    )  # fmt: skip
    return sample.map(Tensor.detach)
