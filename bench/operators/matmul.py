"""Matrix products: (m, k) times (k, n), alone, in batches and in groups."""

from __future__ import annotations

import random
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright.bench.case import Draw, operator
from warpwright.bench.operators._common import draw_transposed, draw_weight, halve_largest, suffix
from warpwright.testing import Cost, Sample
from warpwright.testing.spec import FLOAT_TYPES, nbytes

#: How each operand lies in memory, as BLAS says it: "n" row by row, "t" column by column.
Layout = Literal["nn", "nt", "tn", "tt"]
Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]


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


def _torch_matmul(input: Tensor, other: Tensor) -> Tensor:
    return torch.matmul(input, other)


def _torch_bmm(input: Tensor, mat2: Tensor) -> Tensor:
    return torch.bmm(input, mat2)


def _product_cost(input: Tensor, other: Tensor) -> Cost:
    rows, n = input.shape[:-1].numel(), other.shape[-1]
    return Cost(2 * rows * n * input.shape[-1], nbytes(input, other) + rows * n * input.element_size())


@operator(
    "matmul",
    smaller=halve_largest("m", "n"),
    family="matmul",
    torch_op=_torch_matmul,
    cost=_product_cost,
    dtypes=FLOAT_TYPES,
    gradient=True,
)
def matmul(draw: Draw, *, m: int, n: int, k: int, layout: Layout = "nn") -> Sample:
    return Sample(f"{m} x {n} x {k} {layout}", _operands(draw, (), m, n, k, layout))


@operator(
    "bmm",
    smaller=halve_largest("batch", "m", "n"),
    family="matmul",
    torch_op=_torch_bmm,
    cost=_product_cost,
    dtypes=FLOAT_TYPES,
    gradient=True,
)
def bmm(draw: Draw, *, batch: int, m: int, n: int, k: int, layout: Layout = "nn") -> Sample:
    return Sample(f"{batch} of {m} x {n} x {k} {layout}", _operands(draw, (batch,), m, n, k, layout))


# ---- grouped_matmul ----

#: Their sizes are made one by one.
_MAX_GROUPS = 4096


def _torch_grouped_matmul(input: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Rows of input up to offsets[g], and from offsets[g - 1] on, times weight[g] (n, k)."""
    if input.dtype == torch.bfloat16:  # All that PyTorch's own takes on a GPU and in compiled code.
        return F.grouped_mm(input, weight.mT, offs=offsets)
    ends = offsets.tolist()
    groups = zip([0, *ends[:-1]], ends, weight, strict=True)
    return torch.cat([input[start:end] @ matrix.mT for start, end, matrix in groups])


def _grouped_cost(input: Tensor, weight: Tensor, offsets: Tensor) -> Cost:
    """A group without rows need not read its weight."""
    ends = offsets.tolist()
    used = sum(end > start for start, end in zip([0, *ends[:-1]], ends, strict=True))
    n, k = weight.shape[1:]
    rows, size = input.shape[0], input.element_size()
    return Cost(2 * rows * n * k, nbytes(input, offsets) + (used * n * k + rows * n) * size)


def group_sizes(groups: int, tokens: int, seed: int) -> list[int]:
    """Rows of each group: uneven, every fourth empty, and the same numbers in another order for another seed."""
    weights = [0 if group % 4 == 3 else 1 / (1 + group) for group in range(groups)]
    sizes = [int(tokens * weight / sum(weights)) for weight in weights]
    sizes[0] += tokens - sum(sizes)
    random.Random(seed).shuffle(sizes)
    return sizes


@operator(
    "grouped_matmul",
    smaller=halve_largest("tokens", "n", "k", least=32),
    family="matmul",
    torch_op=_torch_grouped_matmul,
    cost=_grouped_cost,
    dtypes=FLOAT_TYPES,
    gradient=True,
)
def grouped_matmul(draw: Draw, *, groups: int, tokens: int, n: int, k: int) -> Sample:
    if not 1 <= groups <= _MAX_GROUPS:
        raise RuntimeError(f"warpwright: bench: groups must be between 1 and {_MAX_GROUPS}, got {groups}")
    sizes = group_sizes(groups, tokens, draw.generator.initial_seed())
    # Costs are counted on "meta", and depend on which groups are empty: the few offsets keep their data there.
    device = "cpu" if draw.device.type == "meta" else draw.device
    offsets = torch.tensor(sizes, device=device).cumsum(0).to(torch.int32)
    weight = draw_weight(draw, groups, n, k, fan_in=k)
    return Sample(f"{groups} groups, {tokens} x {n} x {k}", (draw.tensor(tokens, k), weight, offsets))
