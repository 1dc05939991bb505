"""Dropout of `rows` of `width` elements."""

from __future__ import annotations

from torch import Tensor

from warpwright.bench.case import Draw, halve, operator
from warpwright.testing import Sample


def _seed(draw: Draw) -> Tensor:
    return draw.integers(1, low=0, high=2**62)


@operator("dropout", smaller=halve("rows"))
def dropout(draw: Draw, *, rows: int, width: int, p: float = 0.1) -> Sample:
    return Sample(f"{rows} x {width}, p {p:g}", (draw.tensor(rows, width), p), {"seed": _seed(draw)})


@operator("dropout_add", smaller=halve("rows"))
def dropout_add(draw: Draw, *, rows: int, width: int, p: float = 0.1) -> Sample:
    args = (draw.tensor(rows, width), draw.tensor(rows, width), p)
    return Sample(f"{rows} x {width}, p {p:g}", args, {"seed": _seed(draw)})
