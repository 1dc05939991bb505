"""Matrix products: (m, k) times (k, n), alone, in batches and in groups."""

from __future__ import annotations

import random
from typing import Literal

import torch
from torch import Tensor

from warpwright.bench.case import Draw, operator
from warpwright.bench.operators._common import Activation, draw_transposed, draw_weight, halve_largest, suffix
from warpwright.testing import Sample

#: How each operand lies in memory, as BLAS says it: "n" row by row, "t" column by column.
Layout = Literal["nn", "nt", "tn", "tt"]


@operator("linear", smaller=halve_largest("m", "n"))
def linear(
    draw: Draw,
    *,
    m: int,
    n: int,
    k: int,
    bias: bool = False,
    activation: Activation | None = None,
    residual: bool = False,
) -> Sample:
    args = [draw.tensor(m, k), draw_weight(draw, n, k, fan_in=k)]
    if bias:
        args.append(draw.tensor(n))
    kwargs = {"activation": activation} if activation else {}
    extra = {"residual": draw.tensor(m, n)} if residual else {}
    label = f"{m} x {n} x {k}{suffix(bias=bias, residual=residual, activation=activation)}"
    return Sample(label, tuple(args), {**kwargs, **extra})


def _operands(draw: Draw, lead: tuple[int, ...], m: int, n: int, k: int, layout: Layout) -> tuple[Tensor, Tensor]:
    """Operands of shapes (m, k) and (k, n) that lie in memory as `layout` says."""
    left = draw.tensor(*lead, *((m, k) if layout[0] == "n" else (k, m)))
    right = draw_weight(draw, *lead, *((k, n) if layout[1] == "n" else (n, k)), fan_in=k)
    left, right = (t if side == "n" else draw_transposed(t) for t, side in zip((left, right), layout, strict=True))
    return left, right


# ---- matmul and bmm ----


@operator("matmul", smaller=halve_largest("m", "n"))
def matmul(draw: Draw, *, m: int, n: int, k: int, layout: Layout = "nn") -> Sample:
    return Sample(f"{m} x {n} x {k} {layout}", _operands(draw, (), m, n, k, layout))


@operator("bmm", smaller=halve_largest("batch", "m", "n"))
def bmm(draw: Draw, *, batch: int, m: int, n: int, k: int, layout: Layout = "nn") -> Sample:
    return Sample(f"{batch} of {m} x {n} x {k} {layout}", _operands(draw, (batch,), m, n, k, layout))


@operator("addmm", smaller=halve_largest("m", "n"))
def addmm(draw: Draw, *, m: int, n: int, k: int, activation: Activation | None = None) -> Sample:
    operands = (draw.tensor(n), *_operands(draw, (), m, n, k, "nt"))
    kwargs = {"activation": activation} if activation else {}
    return Sample(f"{m} x {n} x {k}{suffix(activation=activation)}", operands, kwargs)


# ---- grouped_matmul ----

#: Their sizes are made one by one.
_MAX_GROUPS = 4096


def group_sizes(groups: int, tokens: int, seed: int) -> list[int]:
    """Rows of each group: uneven, every fourth empty, and the same numbers in another order for another seed."""
    weights = [0 if group % 4 == 3 else 1 / (1 + group) for group in range(groups)]
    sizes = [int(tokens * weight / sum(weights)) for weight in weights]
    sizes[0] += tokens - sum(sizes)
    random.Random(seed).shuffle(sizes)
    return sizes


@operator("grouped_matmul", smaller=halve_largest("tokens", "n", "k", least=32))
def grouped_matmul(draw: Draw, *, groups: int, tokens: int, n: int, k: int) -> Sample:
    if not 1 <= groups <= _MAX_GROUPS:
        raise RuntimeError(f"warpwright: bench: groups must be between 1 and {_MAX_GROUPS}, got {groups}")
    sizes = group_sizes(groups, tokens, draw.generator.initial_seed())
    # Costs are counted on "meta", and depend on which groups are empty: the few offsets keep their data there.
    device = "cpu" if draw.device.type == "meta" else draw.device
    offsets = torch.tensor(sizes, device=device).cumsum(0).to(torch.int32)
    weight = draw_weight(draw, groups, n, k, fan_in=k)
    return Sample(f"{groups} groups, {tokens} x {n} x {k}", (draw.tensor(tokens, k), weight, offsets))
