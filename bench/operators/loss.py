"""Losses: `rows` targets among `classes`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import draw_weight, halve_largest
from warpwright.testing import Cost, Sample
from warpwright.testing.spec import FLOAT_TYPES, nbytes


@operator("cross_entropy", smaller=halve("rows"))
def cross_entropy(draw: Draw, *, rows: int, classes: int, label_smoothing: float = 0.0) -> Sample:
    args = (draw.tensor(rows, classes, low=-4, high=4), draw.integers(rows, low=0, high=classes))
    if not label_smoothing:
        return Sample(f"{rows} x {classes}", args)
    label = f"{rows} x {classes}, smoothing {label_smoothing:g}"
    return Sample(label, args, {"label_smoothing": label_smoothing})


def _torch_linear_cross_entropy(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.cross_entropy(F.linear(input, weight, bias), target)


def _linear_cross_entropy_cost(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Cost:
    """The product and the loss; logits are neither written nor read."""
    (rows, width), classes = input.shape, weight.shape[0]
    flops = 2 * rows * classes * width + 4 * rows * classes
    return Cost(flops, nbytes(input, weight, target, bias) + input.element_size())


@operator(
    "linear_cross_entropy",
    smaller=halve_largest("rows", "classes"),
    family="loss",
    torch_op=_torch_linear_cross_entropy,
    cost=_linear_cross_entropy_cost,
    dtypes=FLOAT_TYPES,
    gradient=True,
)
def linear_cross_entropy(draw: Draw, *, rows: int, width: int, classes: int) -> Sample:
    weight = draw_weight(draw, classes, width, fan_in=width)
    return Sample(
        f"{rows} x {width} -> {classes}",
        (draw.tensor(rows, width), weight, draw.integers(rows, low=0, high=classes)),
    )
