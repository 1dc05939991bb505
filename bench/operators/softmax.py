"""Softmax and its logarithm: `rows` of `width` elements."""

from __future__ import annotations

from typing import Any

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import suffix
from warpwright.testing import Sample


def _sample(draw: Draw, rows: int, width: int, causal: bool) -> Sample:
    """Without options the call is torch's own: softmax(input, dim)."""
    options: dict[str, Any] = {"causal": True} if causal else {}
    return Sample(f"{rows} x {width}{suffix(causal=causal)}", (draw.tensor(rows, width, low=-4, high=4), -1), options)


@operator("softmax", smaller=halve("rows"))
def softmax(draw: Draw, *, rows: int, width: int, causal: bool = False) -> Sample:
    return _sample(draw, rows, width, causal)


@operator("log_softmax", smaller=halve("rows"))
def log_softmax(draw: Draw, *, rows: int, width: int) -> Sample:
    return _sample(draw, rows, width, causal=False)
