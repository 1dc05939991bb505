"""Quantization of `rows` x `width` to 8-bit floats and back, with a scale for each row or each block of a row."""

from __future__ import annotations

from typing import Literal

import torch

from warpwright.bench.case import Draw, halve, operator
from warpwright.ops.quantize import scale_shape
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


_TYPES = {**_FLOAT8_TYPES, "int8": torch.int8}
Granularity = Literal["tensor", "row", "block", "square"]


@operator("quantize", smaller=halve("rows"))
def quantize(
    draw: Draw,
    *,
    rows: int,
    width: int,
    granularity: Granularity = "block",
    format: Literal["e4m3", "e5m2", "int8"] = "e4m3",
    transposed: bool = False,
) -> Sample:
    x = draw.tensor(rows, width, low=-3, high=3, grad=False)
    label = f"{rows} x {width}, {format}, {granularity}{' and transposed' if transposed else ''}"
    return Sample(label, (x, _TYPES[format]), {"granularity": granularity, "transposed": transposed})


@operator("dequantize", smaller=halve("rows"))
def dequantize(
    draw: Draw,
    *,
    rows: int,
    width: int,
    granularity: Granularity = "block",
    format: Literal["e4m3", "e5m2", "int8"] = "e4m3",
) -> Sample:
    """The case's dtype is that of the result."""
    largest = 127 if format == "int8" else 400
    values = draw.tensor(rows, width, low=-largest, high=largest, grad=False, dtype=_TYPES[format])
    shape = scale_shape((rows, width), granularity, 128)
    scale = draw.tensor(*shape, low=0.001, high=0.02, grad=False, dtype=torch.float32)
    kwargs = {"granularity": granularity, "dtype": draw.dtype}
    return Sample(f"{rows} x {width}, {format}, {granularity}", (values, scale), kwargs)


@operator("dequantize_fp8", smaller=halve("rows"))
def dequantize_fp8(
    draw: Draw, *, rows: int, width: int, block_size: int | None = None, format: Literal["e4m3", "e5m2"] = "e4m3"
) -> Sample:
    """The case's dtype is that of the result."""
    values = draw.tensor(rows, width, low=-400, high=400, grad=False, dtype=_FLOAT8_TYPES[format])
    scales = 1 if block_size is None else -(-width // block_size)
    scale = draw.tensor(rows, scales, low=0.001, high=0.02, grad=False, dtype=torch.float32)
    return Sample(_label(rows, width, block_size, format), (values, scale, block_size), {"dtype": draw.dtype})
