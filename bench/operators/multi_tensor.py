"""What gradients go through before an optimizer's step: their norm and their scaling, with shapes of whole models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from warpwright.bench.case import Draw, operator
from warpwright.bench.operators._common import suffix
from warpwright.bench.operators.optim import MODELS, Model, smaller
from warpwright.testing import Sample


def _gradients(draw: Draw, model: str, layers: int | None, divide: int) -> tuple[str, list[Tensor]]:
    shapes = [(max(1, first // divide), *rest) for first, *rest in MODELS[model](layers)]
    part = "" if divide == 1 else f" / {divide}"
    return f"{model}{part}, {len(shapes)} tensors", [draw.tensor(*shape, grad=False) for shape in shapes]


@operator("multi_tensor_norm", smaller=smaller)
def multi_tensor_norm(
    draw: Draw, *, model: Model, order: Literal["2", "inf"] = "2", layers: int | None = None, divide: int = 1
) -> Sample:
    label, gradients = _gradients(draw, model, layers, divide)
    infinite = {"order inf": order == "inf"}
    return Sample(label + suffix(**infinite), (gradients, math.inf if order == "inf" else 2.0))


def _scale_in_place(tensors: Sequence[Tensor], multiplier: Tensor) -> None:
    torch._foreach_mul_(list(tensors), multiplier)


def _written(sample: Sample) -> list[Tensor]:
    return list(sample.args[0])


@operator("multi_tensor_scale_", smaller=smaller, written=_written, in_place=_scale_in_place)
def multi_tensor_scale_(draw: Draw, *, model: Model, layers: int | None = None, divide: int = 1) -> Sample:
    label, gradients = _gradients(draw, model, layers, divide)
    return Sample(label, (gradients, torch.full((), 0.5, device=draw.device)))
