"""Sharding rules of products: rows, columns, or parts of the sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from warpwright._check import needs_preact
from warpwright.distributed._rules import SUM, WHOLE, Lying, dim, if_, needed, rule
from warpwright.ops._epilogue import keeps_preact


@rule("linear")
def linear(
    input: Any, weight: Any, bias: Any, residual: Any, activation: str, precision: str, invariant: bool, save: bool
) -> Iterator[Lying]:
    last = input.ndim - 1
    kept = save and needs_preact(activation)
    for i in range(last):
        yield (dim(i), if_(kept, dim(i))), (dim(i), WHOLE, WHOLE, dim(i))
    yield (dim(last), if_(kept, dim(last))), (WHOLE, dim(0), dim(0), dim(last))
    if activation == "none":  # Bias and residual are added once: torch makes parts of what is whole without a message.
        yield (SUM, WHOLE), (dim(last), dim(1), SUM, SUM)


@rule("linear_backward")
def linear_backward(
    grad: Any, input: Any, weight: Any, saved: Any, activation: str, precision: str, invariant: bool, *needs: bool
) -> Iterator[Lying]:
    last = input.ndim - 1
    for i in range(last):
        yield needed(needs, dim(i), SUM, SUM, dim(i)), (dim(i), dim(i), WHOLE, dim(i))
    yield needed(needs, SUM, dim(0), dim(0), dim(last)), (dim(last), WHOLE, dim(0), dim(last))
    yield needed(needs, dim(last), dim(1), WHOLE, WHOLE), (WHOLE, dim(last), dim(1), WHOLE)


@rule("matmul")
def matmul(
    input: Any, other: Any, bias: Any, residual: Any, alpha: float, beta: float, activation: str, scale: float,
    out_dtype: Any, precision: str, invariant: bool, save: bool,
) -> Iterator[Lying]:  # fmt: skip
    rows, columns = input.ndim - 2, input.ndim - 1
    kept = keeps_preact(input.tensor_meta.dtype, activation, scale, out_dtype, save)
    for i in range(rows):
        yield (dim(i), if_(kept, dim(i))), (dim(i), dim(i), WHOLE, dim(i))
    yield (dim(rows), if_(kept, dim(rows))), (dim(rows), WHOLE, WHOLE, dim(rows))
    yield (dim(columns), if_(kept, dim(columns))), (WHOLE, dim(columns), dim(0), dim(columns))
    if activation == "none" and (
        out_dtype is None or out_dtype.itemsize > 1
    ):  # 8 bits saturate: a sum of them is none.
        yield (SUM, if_(kept, SUM)), (dim(columns), dim(rows), SUM, SUM)


@rule("matmul_backward")
def matmul_backward(
    grad: Any, input: Any, other: Any, saved: Any, alpha: float, beta: float, activation: str, scale: float,
    precision: str, invariant: bool, *needs: bool,
) -> Iterator[Lying]:  # fmt: skip
    rows, columns = input.ndim - 2, input.ndim - 1
    for i in range(rows):
        yield needed(needs, dim(i), dim(i), SUM, dim(i)), (dim(i), dim(i), dim(i), dim(i))
    yield needed(needs, dim(rows), SUM, SUM, dim(rows)), (dim(rows), dim(rows), WHOLE, dim(rows))
    yield needed(needs, SUM, dim(columns), dim(0), dim(columns)), (dim(columns), WHOLE, dim(columns), dim(columns))
    yield needed(needs, dim(columns), dim(rows), WHOLE, WHOLE), (WHOLE, dim(columns), dim(rows), WHOLE)


# ---- gated projections and MLPs ----


@rule("linear_glu")
def linear_glu(
    input: Any, gate_weight: Any, up_weight: Any, gate_bias: Any, up_bias: Any, activation: str, precision: str,
    invariant: bool, save: bool,
) -> Iterator[Lying]:  # fmt: skip
    last = input.ndim - 1
    for i in range(last):
        yield (dim(i), if_(save, dim(i)), if_(save, dim(i))), (dim(i), WHOLE, WHOLE, WHOLE, WHOLE)
    yield (dim(last), if_(save, dim(last)), if_(save, dim(last))), (WHOLE, dim(0), dim(0), dim(0), dim(0))


@rule("linear_glu_backward")
def linear_glu_backward(
    grad: Any, input: Any, gate_weight: Any, up_weight: Any, gate: Any, up: Any, activation: str, precision: str,
    invariant: bool, *needs: bool,
) -> Iterator[Lying]:  # fmt: skip
    last = input.ndim - 1
    for i in range(last):
        yield needed(needs, dim(i), *[SUM] * 4), (dim(i), dim(i), WHOLE, WHOLE, dim(i), dim(i))
    yield needed(needs, SUM, *[dim(0)] * 4), (dim(last), WHOLE, dim(0), dim(0), dim(last), dim(last))


@rule("mlp")
def mlp(
    input: Any, up_weight: Any, down_weight: Any, gate_weight: Any, up_bias: Any, down_bias: Any, gate_bias: Any,
    residual: Any, activation: str, precision: str, invariant: bool, save: bool,
) -> Iterator[Lying]:  # fmt: skip
    last = input.ndim - 1
    gated = save and gate_weight is not None
    for i in range(last):
        yield (dim(i), if_(gated, dim(i)), if_(save, dim(i))), (dim(i), *[WHOLE] * 6, dim(i))
    # Columns of the first layer are rows of the second, whose sum is all that must be exchanged.
    yield (
        (SUM, if_(gated, dim(last)), if_(save, dim(last))),
        (WHOLE, dim(0), dim(1), dim(0), dim(0), SUM, dim(0), SUM),
    )


@rule("mlp_backward")
def mlp_backward(
    grad: Any, input: Any, up_weight: Any, down_weight: Any, gate_weight: Any, gate: Any, up: Any, activation: str,
    precision: str, invariant: bool, *needs: bool,
) -> Iterator[Lying]:  # fmt: skip
    last = input.ndim - 1
    for i in range(last):
        yield needed(needs, dim(i), *[SUM] * 6), (dim(i), dim(i), WHOLE, WHOLE, WHOLE, dim(i), dim(i))
    yield (
        needed(needs, SUM, dim(0), dim(1), dim(0), dim(0), WHOLE, dim(0)),
        (WHOLE, WHOLE, dim(0), dim(1), dim(0), dim(last), dim(last)),
    )
