"""Products of 8-bit matrices, (m, k) times (n, k) transposed, with scales."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from warpwright.bench.case import Draw, operator
from warpwright.bench.operators._common import Activation, halve_largest, suffix
from warpwright.testing import Sample

_FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "int8": torch.int8}
#: The shapes of input's and of other's scales.
Scales = Literal["tensor", "row", "block"]


def _operand(draw: Draw, rows: int, k: int, format: str) -> Tensor:
    if format == "int8":
        return draw.integers(rows, k, low=-127, high=128).to(torch.int8)
    return draw.tensor(rows, k, low=-400, high=400, grad=False, dtype=_FORMATS[format])


def _shapes(scales: Scales, m: int, n: int, k: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if scales == "tensor":
        return (), ()
    blocks = -(-k // 128)
    return ((m,), (n,)) if scales == "row" else ((m, blocks), (-(-n // 128), blocks))


@operator("scaled_matmul", smaller=halve_largest("m", "n"))
def scaled_matmul(
    draw: Draw,
    *,
    m: int,
    n: int,
    k: int,
    format: Literal["e4m3", "e5m2", "int8"] = "e4m3",
    scales: Scales = "block",
    bias: bool = False,
    activation: Activation | None = None,
) -> Sample:
    """The case's dtype is that of the result."""
    operands = _operand(draw, m, k, format), _operand(draw, n, k, format)
    unit = 1 / 448 if format != "int8" else 1 / 127
    found = (
        draw.tensor(*s, low=0.5 * unit, high=unit, grad=False, dtype=torch.float32) for s in _shapes(scales, m, n, k)
    )
    kwargs: dict[str, object] = {"out_dtype": draw.dtype}
    if bias:
        kwargs["bias"] = draw.tensor(n, grad=False)
    if activation:
        kwargs["activation"] = activation
    label = f"{m} x {n} x {k} {format}, a scale for each {scales}{suffix(bias=bias, activation=activation)}"
    return Sample(label, (*operands, *found), kwargs)
