"""Activations of `rows` x `width`, and gated ones of two tensors of that size."""

from __future__ import annotations

from typing import Literal

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import suffix
from warpwright.testing import Sample

Approximate = Literal["none", "tanh"]


def _activation(draw: Draw, rows: int, width: int, bias: bool, approximate: Approximate = "none") -> Sample:
    named = None if approximate == "none" else approximate
    args = (draw.tensor(rows, width, low=-4, high=4), *([approximate] if named else []))
    options = {"bias": draw.tensor(width)} if bias else {}
    return Sample(f"{rows} x {width}{suffix(bias=bias, approximate=named)}", args, options)


@operator("gelu", smaller=halve("rows"))
def gelu(draw: Draw, *, rows: int, width: int, bias: bool = False, approximate: Approximate = "none") -> Sample:
    return _activation(draw, rows, width, bias, approximate)


@operator("silu", smaller=halve("rows"))
def silu(draw: Draw, *, rows: int, width: int, bias: bool = False) -> Sample:
    return _activation(draw, rows, width, bias)


@operator("relu_squared", smaller=halve("rows"))
def relu_squared(draw: Draw, *, rows: int, width: int, bias: bool = False) -> Sample:
    return _activation(draw, rows, width, bias)


@operator("swiglu", smaller=halve("rows"))
def swiglu(draw: Draw, *, rows: int, width: int) -> Sample:
    return Sample(f"{rows} x {width}", (draw.tensor(rows, width, low=-4, high=4), draw.tensor(rows, width)))


@operator("geglu", smaller=halve("rows"))
def geglu(draw: Draw, *, rows: int, width: int, approximate: Approximate = "none") -> Sample:
    args = (draw.tensor(rows, width, low=-4, high=4), draw.tensor(rows, width))
    named = None if approximate == "none" else approximate
    return Sample(f"{rows} x {width}{suffix(approximate=named)}", args, {"approximate": approximate})


@operator("reglu", smaller=halve("rows"))
def reglu(draw: Draw, *, rows: int, width: int) -> Sample:
    return Sample(f"{rows} x {width}", (draw.tensor(rows, width, low=-4, high=4), draw.tensor(rows, width)))


@operator("glu", smaller=halve("rows"))
def glu(draw: Draw, *, rows: int, width: int) -> Sample:
    """`width` is that of the result."""
    return Sample(f"{rows} x {width}", (draw.tensor(rows, 2 * width, low=-4, high=4),))


@operator("relu", smaller=halve("rows"))
def relu(draw: Draw, *, rows: int, width: int, bias: bool = False) -> Sample:
    return _activation(draw, rows, width, bias)
