"""Gated activations: two tensors of `rows` x `width` in, one out."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import suffix
from warpwright.testing import Cost, Sample
from warpwright.testing.spec import FLOAT_TYPES, nbytes


@operator("swiglu", smaller=halve("rows"))
def swiglu(draw: Draw, *, rows: int, width: int) -> Sample:
    return Sample(f"{rows} x {width}", (draw.tensor(rows, width, low=-4, high=4), draw.tensor(rows, width)))


def _torch_geglu(gate: Tensor, up: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(gate, approximate=approximate) * up


def _geglu_cost(gate: Tensor, up: Tensor, *, approximate: str = "none") -> Cost:
    """gelu is x / 2 * (1 + erf(x / sqrt(2))); tanh's polynomial costs three operations more."""
    flops = 6 if approximate == "none" else 9
    return Cost(flops * gate.numel(), nbytes(gate, up) + nbytes(gate))


@operator(
    "geglu",
    smaller=halve("rows"),
    family="activation",
    torch_op=_torch_geglu,
    cost=_geglu_cost,
    dtypes=FLOAT_TYPES,
    gradient=True,
)
def geglu(draw: Draw, *, rows: int, width: int, approximate: Literal["none", "tanh"] = "none") -> Sample:
    args = (draw.tensor(rows, width, low=-4, high=4), draw.tensor(rows, width))
    named = None if approximate == "none" else approximate
    return Sample(f"{rows} x {width}{suffix(approximate=named)}", args, {"approximate": approximate})
