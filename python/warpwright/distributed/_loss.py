"""Sharding rules of the losses: over the batch. A mean is a sum and a count: ops.cross_entropy makes it so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from warpwright.distributed._rules import SUM, WHOLE, Lying, dim, if_, needed, rule


def _reduced(reduction: str) -> Any:
    return dim(0) if reduction == "none" else SUM


@rule("cross_entropy")
def cross_entropy(input: Any, target: Any, weight: Any, ignore_index: int, reduction: str, *_: Any) -> Iterator[Lying]:
    if input.ndim > 1 and reduction != "mean":
        mass = if_(weight is not None or target.tensor_meta.dtype.is_floating_point, dim(0))
        total = if_(reduction != "none", SUM)
        yield (_reduced(reduction), dim(1), mass, total), (dim(0), dim(0), WHOLE)


@rule("cross_entropy_backward")
def cross_entropy_backward(
    grad: Any, input: Any, target: Any, weight: Any, lse: Any, mass: Any, total: Any, ignore_index: int,
    reduction: str, label_smoothing: float, z_loss: float, softcap: float, *needs: bool,
) -> Iterator[Lying]:  # fmt: skip
    if input.ndim > 1 and reduction != "mean":
        of_loss, of_total = (dim(0), WHOLE) if reduction == "none" else (WHOLE, SUM)
        inputs = (of_loss, dim(0), dim(0), WHOLE, dim(1), if_(mass.shape.numel() > 0, dim(0)), of_total)
        yield needed(needs, dim(0), dim(0)), inputs


@rule("nll_loss")
def nll_loss(input: Any, target: Any, weight: Any, ignore_index: int, reduction: str, *_: Any) -> Iterator[Lying]:
    if input.ndim > 1 and reduction != "mean":
        yield (_reduced(reduction), if_(reduction != "none", SUM)), (dim(0), dim(0), WHOLE)


@rule("nll_loss_backward")
def nll_loss_backward(
    grad: Any, input: Any, target: Any, weight: Any, total: Any, ignore_index: int, reduction: str
) -> Iterator[Lying]:
    if input.ndim > 1 and reduction != "mean":
        of_loss, of_total = (dim(0), WHOLE) if reduction == "none" else (WHOLE, SUM)
        yield (dim(0),), (of_loss, dim(0), dim(0), WHOLE, of_total)


@rule("linear_cross_entropy")
def linear_cross_entropy(
    input: Any, weight: Any, target: Any, bias: Any, class_weight: Any, ignore_index: int, reduction: str, *rest: Any
) -> Iterator[Lying]:
    if input.ndim > 1 and reduction != "mean":
        early = [need and reduction != "none" for need in rest[-3:]]
        total = if_(reduction != "none", SUM)
        outputs = (_reduced(reduction), dim(1), if_(class_weight is not None, dim(0)), total)
        yield (*outputs, *needed(early, dim(0), SUM, SUM)), (dim(0), WHOLE, dim(0), WHOLE, WHOLE)


@rule("linear_cross_entropy_backward")
def linear_cross_entropy_backward(
    grad: Any, input: Any, weight: Any, target: Any, bias: Any, class_weight: Any, lse: Any, mass: Any, total: Any,
    ignore_index: int, reduction: str, *rest: Any,
) -> Iterator[Lying]:  # fmt: skip
    if input.ndim > 1 and reduction != "mean":
        of_loss, of_total = (dim(0), WHOLE) if reduction == "none" else (WHOLE, SUM)
        statistics = (dim(1), if_(class_weight is not None, dim(0)), of_total)
        yield needed(rest[-3:], dim(0), SUM, SUM), (of_loss, dim(0), WHOLE, dim(0), WHOLE, WHOLE, *statistics)


@rule("linear_loss_backward")
def linear_loss_backward(grad: Any, grad_input: Any, grad_weight: Any, grad_bias: Any) -> Iterator[Lying]:
    """Three tensors times a number, each as its forward pass left it."""
    made = [grad.shape.numel() > 0 for grad in (grad_input, grad_weight, grad_bias)]
    placements = needed(made, dim(0), SUM, SUM)
    yield placements, (WHOLE, *placements)
