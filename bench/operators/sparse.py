"""Products with 2:4 sparse weights: (m, k) times (n, k) transposed.

PyTorch's own way to the same numbers makes the weight dense in each call. What sparsity is worth is the time of
`linear` on a dense weight of the same sizes, which the suite "sparse" has beside it.
"""

from __future__ import annotations

from math import sqrt

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import Activation, halve_largest, suffix
from warpwright.testing import Sample
from warpwright.testing.specs.sparse import draw_sparse24


@operator("prune_24", smaller=halve("n"))
def prune_24(draw: Draw, *, n: int, k: int) -> Sample:
    return Sample(f"{n} x {k}", (draw.tensor(n, k, grad=False),))


@operator("dense_from_sparse24", smaller=halve("n"))
def dense_from_sparse24(draw: Draw, *, n: int, k: int) -> Sample:
    return Sample(f"{n} x {k}", (draw_sparse24(draw, n, k),))


@operator("linear_sparse24", smaller=halve_largest("m", "n"))
def linear_sparse24(
    draw: Draw,
    *,
    m: int,
    n: int,
    k: int,
    bias: bool = False,
    activation: Activation | None = None,
    residual: bool = False,
) -> Sample:
    bound = 3 / sqrt(k / 2)  # As draw_weight, of the products that there are.
    weight = draw_sparse24(draw, n, k, low=-bound, high=bound)
    kwargs = {"activation": activation} if activation else {}
    extra = {"residual": draw.tensor(m, n)} if residual else {}
    label = f"{m} x {n} x {k}{suffix(bias=bias, residual=residual, activation=activation)}"
    return Sample(label, (draw.tensor(m, k), weight, draw.tensor(n) if bias else None), {**kwargs, **extra})
