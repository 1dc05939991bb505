"""Products with packed weights of 4 and 8 bits, (m, k) times (n, k) transposed, and the weights as floats.

PyTorch has no such op: the provider "torch" dequantizes with its own ops and multiplies. What a weight of 16 bits costs
is in the rows of `linear` of the same sizes.
"""

from __future__ import annotations

from math import sqrt

import torch

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import Activation, halve_largest, suffix
from warpwright.ops.packed import PIECE, PackedWeight, group_count
from warpwright.testing import Sample


def _draw_packed(draw: Draw, bits: int, n: int, k: int, group_size: int | None, zero_points: bool) -> PackedWeight:
    """Any integers, scaled so that sums of k products with numbers from [-1, 1) stay near 1."""
    width = -(-k // PIECE) * PIECE * bits // 8
    data = draw.tensor(n, width, low=0, high=255.5, grad=False, dtype=torch.uint8)
    shape = n, group_count(k, group_size)
    step = 6 / sqrt(k) / 2**bits
    scale = draw.tensor(*shape, low=0.5 * step, high=1.5 * step, grad=False)
    center = 2 ** (bits - 1)
    zero = draw.tensor(*shape, low=center - 2, high=center + 2, grad=False, dtype=torch.uint8) if zero_points else None
    return PackedWeight(data, scale, zero, bits, group_size, k)


def _label(n: int, k: int, group_size: int | None, zero_points: bool) -> str:
    groups = "rows" if group_size is None else f"by {group_size}"
    return f"{n} x {k} {groups}{', zero points' if zero_points else ''}"


def _linear(
    draw: Draw,
    bits: int,
    m: int,
    n: int,
    k: int,
    group_size: int | None,
    zero_points: bool,
    bias: bool,
    activation: Activation | None,
) -> Sample:
    args = [draw.tensor(m, k), _draw_packed(draw, bits, n, k, group_size, zero_points)]
    if bias:
        args.append(draw.tensor(n))
    label = f"{m} x {_label(n, k, group_size, zero_points)}{suffix(bias=bias, activation=activation)}"
    return Sample(label, tuple(args), {"activation": activation} if activation else {})


@operator("linear_w4a16", smaller=halve_largest("m", "n"))
def linear_w4a16(
    draw: Draw,
    *,
    m: int,
    n: int,
    k: int,
    group_size: int | None = 128,
    zero_points: bool = False,
    bias: bool = False,
    activation: Activation | None = None,
) -> Sample:
    return _linear(draw, 4, m, n, k, group_size, zero_points, bias, activation)


@operator("linear_w8a16", smaller=halve_largest("m", "n"))
def linear_w8a16(
    draw: Draw,
    *,
    m: int,
    n: int,
    k: int,
    group_size: int | None = 128,
    zero_points: bool = False,
    bias: bool = False,
    activation: Activation | None = None,
) -> Sample:
    return _linear(draw, 8, m, n, k, group_size, zero_points, bias, activation)


@operator("dequantize_packed", smaller=halve("n", "k"))
def dequantize_packed(
    draw: Draw, *, n: int, k: int, bits: int = 4, group_size: int | None = 128, zero_points: bool = False
) -> Sample:
    packed = _draw_packed(draw, bits, n, k, group_size, zero_points)
    return Sample(f"{_label(n, k, group_size, zero_points)}, {bits} bits", (packed,))


@operator("quantize_packed", smaller=halve("n", "k"))
def quantize_packed(
    draw: Draw, *, n: int, k: int, bits: int = 4, group_size: int | None = 128, zero_points: bool = False
) -> Sample:
    args = draw.tensor(n, k, grad=False), bits, group_size, not zero_points
    return Sample(f"{_label(n, k, group_size, zero_points)}, {bits} bits", args)
