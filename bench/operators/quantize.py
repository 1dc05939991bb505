"""Quantization of `rows` x `width` to 8-bit floats and back, with a scale for each row or each block of a row."""

from __future__ import annotations

from typing import Literal

import torch

from warpwright.bench.case import Draw, halve, operator
from warpwright.testing import Sample

_FLOAT8_TYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def _label(rows: int, width: int, block_size: int | None, format: str) -> str:
    scales = "rows" if block_size is None else f"blocks of {block_size}"
    return f"{rows} x {width}, {format}, {scales}"


@operator("quantize_fp8", smaller=halve("rows"))
def quantize_fp8(
    draw: Draw, *, rows: int, width: int, block_size: int | None = None, format: Literal["e4m3", "e5m2"] = "e4m3"
) -> Sample:
    x = draw.tensor(rows, width, low=-3, high=3, grad=False)
    return Sample(_label(rows, width, block_size, format), (x, block_size), {"dtype": _FLOAT8_TYPES[format]})


@operator("dequantize_fp8", smaller=halve("rows"))
def dequantize_fp8(
    draw: Draw, *, rows: int, width: int, block_size: int | None = None, format: Literal["e4m3", "e5m2"] = "e4m3"
) -> Sample:
    """The case's dtype is that of the result."""
    values = draw.tensor(rows, width, low=-400, high=400, grad=False, dtype=_FLOAT8_TYPES[format])
    scales = 1 if block_size is None else -(-width // block_size)
    scale = draw.tensor(rows, scales, low=0.001, high=0.02, grad=False, dtype=torch.float32)
    return Sample(_label(rows, width, block_size, format), (values, scale, block_size), {"dtype": draw.dtype})
