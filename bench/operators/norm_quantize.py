"""Norms of `rows` of `width` elements that leave in 8 bits, with a scale for each row or each block of a row."""

from __future__ import annotations

from typing import Any, Literal

import torch

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import suffix
from warpwright.testing import Sample

_TYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "int8": torch.int8}
_Format = Literal["e4m3", "e5m2", "int8"]


def _sample(
    draw: Draw, affine: int, eps: float, rows: int, width: int, residual: bool, block_size: int | None, format: str
) -> Sample:
    kwargs: dict[str, Any] = {"dtype": _TYPES[format], "block_size": block_size}
    if residual:
        kwargs["residual"] = draw.tensor(rows, width, grad=False)
    weights = (draw.tensor(width, grad=False) for _ in range(affine))
    scales = "rows" if block_size is None else f"blocks of {block_size}"
    label = f"{rows} x {width}, {format}, {scales}{suffix(residual=residual)}"
    return Sample(label, (draw.tensor(rows, width, grad=False), (width,), *weights, eps), kwargs)


@operator("rms_norm_quantize", smaller=halve("rows"))
def rms_norm_quantize(
    draw: Draw,
    *,
    rows: int,
    width: int,
    residual: bool = False,
    block_size: int | None = None,
    format: _Format = "e4m3",
) -> Sample:
    return _sample(draw, 1, 1e-6, rows, width, residual, block_size, format)


@operator("layer_norm_quantize", smaller=halve("rows"))
def layer_norm_quantize(
    draw: Draw,
    *,
    rows: int,
    width: int,
    residual: bool = False,
    block_size: int | None = None,
    format: _Format = "e4m3",
) -> Sample:
    return _sample(draw, 2, 1e-5, rows, width, residual, block_size, format)
