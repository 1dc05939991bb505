"""Causal depthwise convolutions, as in Mamba: over a sequence, and the steps of decoding one.

Labels read as "1 x 1536 x 2048, k4": batch, channels, length, kernel.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import draw_weight, suffix
from warpwright.testing import Sample

_Activation = Literal["silu"]


@operator("causal_conv1d", smaller=halve("batch", "channels"))
def causal_conv1d(
    draw: Draw,
    *,
    batch: int,
    channels: int,
    length: int,
    kernel: int,
    bias: bool = True,
    activation: _Activation | None = None,
    channels_last: bool = False,
) -> Sample:
    """`channels_last`: the input is a (batch, length, channels) tensor, transposed."""
    input = draw.tensor(batch, channels, length)
    if channels_last:
        input = draw.tensor(batch, length, channels).detach().mT.requires_grad_()
    args = (input, draw_weight(draw, channels, kernel, fan_in=kernel), draw.tensor(channels) if bias else None)
    label = f"{batch} x {channels} x {length}, k{kernel}{' NLC' if channels_last else ''}"
    kwargs = {"activation": activation} if activation else {}
    return Sample(label + suffix(bias=bias, activation=activation), args, kwargs)


def _step_in_place(
    state: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """What models without a kernel do: the state moves on by a copy, and the product is summed over the taps."""
    seen = torch.cat((state, input.unsqueeze(-1)), -1)
    state.copy_(seen[..., 1:])
    product = (seen * weight).sum(-1)
    product = product if bias is None else product + bias
    return F.silu(product) if activation else product


def _written(sample: Sample) -> list[Tensor]:
    return [sample.args[0]]


@operator("causal_conv1d_update_", smaller=halve("batch", "channels"), written=_written, in_place=_step_in_place)
def causal_conv1d_update_(
    draw: Draw, *, batch: int, channels: int, kernel: int, activation: _Activation | None = None
) -> Sample:
    state = draw.tensor(batch, channels, kernel - 1, grad=False)
    weight = draw_weight(draw, channels, kernel, fan_in=kernel).detach()
    args = (state, draw.tensor(batch, channels, grad=False), weight, draw.tensor(channels, grad=False))
    kwargs: dict[str, Any] = {"activation": activation} if activation else {}
    return Sample(f"{batch} x {channels}, k{kernel} + bias{suffix(activation=activation)}", args, kwargs)
