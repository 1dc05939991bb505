"""Sharding rules of convolutions and batch norm: batch, or channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from warpwright._check import needs_preact
from warpwright.distributed._rules import SUM, WHOLE, Lying, dim, if_, needed, rule


@rule("convolution")
def convolution(
    input: Any, weight: Any, bias: Any, residual: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, activation: str, precision: str, save: bool,
) -> Iterator[Lying]:  # fmt: skip
    kept = save and needs_preact(activation)
    yield (dim(0), if_(kept, dim(0))), (dim(0), WHOLE, WHOLE, dim(0))
    if groups == 1:  # A weight is (out, in, ...), or transposed (in, out, ...).
        out, into = (1, 0) if transposed else (0, 1)
        yield (dim(1), if_(kept, dim(1))), (WHOLE, dim(out), dim(0), dim(1))
        if activation == "none":
            yield (SUM, WHOLE), (dim(1), dim(into), SUM, SUM)


@rule("convolution_backward")
def convolution_backward(
    grad: Any, input: Any, weight: Any, saved: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, activation: str, precision: str, *needs: bool,
) -> Iterator[Lying]:  # fmt: skip
    yield needed(needs, dim(0), SUM, SUM, dim(0)), (dim(0), dim(0), WHOLE, dim(0))
    if groups == 1:
        out, into = (1, 0) if transposed else (0, 1)
        yield needed(needs, SUM, dim(out), dim(0), dim(1)), (dim(1), WHOLE, dim(out), dim(1))
        yield needed(needs, dim(1), dim(into), WHOLE, WHOLE), (WHOLE, dim(1), dim(into), WHOLE)


@rule("batch_norm")
def batch_norm(
    input: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, residual: Any, training: bool, *_: Any
) -> Iterator[Lying]:
    updated = [training and running is not None for running in (running_mean, running_var)]
    per_channel = (dim(0), dim(0), *needed(updated, dim(0), dim(0)))
    yield (dim(1), *per_channel), (dim(1), *[dim(0)] * 4, dim(1))
    if not training:  # Else the statistics are the whole batch's: ops.batch_norm exchanges those.
        yield (dim(0), *[WHOLE] * 4), (dim(0), *[WHOLE] * 4, dim(0))


@rule("batch_norm_backward")
def batch_norm_backward(
    grad: Any, input: Any, weight: Any, bias: Any, residual: Any, mean: Any, rstd: Any, training: bool,
    activation: str, *needs: bool,
) -> Iterator[Lying]:  # fmt: skip
    made = (*needs[:3], needs[3] and activation != "none")
    inputs = (dim(1), dim(1), dim(0), dim(0), dim(1), dim(0), dim(0))
    yield needed(made, dim(1), dim(0), dim(0), dim(1)), inputs
    if not training:
        yield needed(made, dim(0), SUM, SUM, dim(0)), (dim(0), dim(0), WHOLE, WHOLE, dim(0), WHOLE, WHOLE)


@rule("group_norm")
def group_norm(input: Any, *_: Any) -> Iterator[Lying]:
    yield (dim(0), dim(0), dim(0)), (dim(0), None, WHOLE, WHOLE)


@rule("group_norm_backward")
def group_norm_backward(
    grad: Any, input: Any, num_groups: int, weight: Any, bias: Any, mean: Any, rstd: Any, activation: str, *needs: bool
) -> Iterator[Lying]:
    yield needed(needs, dim(0), SUM, SUM), (dim(0), dim(0), None, WHOLE, WHOLE, dim(0), dim(0))
