"""OpSpecs of the loss family."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import HALF_TYPES, BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def _call(make: Make, *shape: int, ignored: int | None = None, low: float = -1.0, high: float = 1.0) -> Any:
    """Logits of `shape` and targets; every third target is `ignored`, if one is named."""
    classes = shape[0] if len(shape) == 1 else shape[1]
    target = make.integers(*(shape[:1] + shape[2:] if len(shape) > 1 else ()), low=0, high=classes)
    if ignored is not None and target.dim() > 0:
        target.view(-1)[::3] = ignored
    return make.tensor(*shape, low=low, high=high), target


def _soft(make: Make, *shape: int, low: float = -1.0, high: float = 1.0) -> Any:
    """Logits of `shape` and probabilities, which have a gradient too."""
    return make.tensor(*shape, low=low, high=high), make.tensor(*shape, low=0.0)


def _samples(make: Make) -> Iterator[Sample]:
    yield Sample("mean", _call(make, 6, 5))
    yield Sample("weighted mean", (*_call(make, 7, 5, ignored=-100), make.tensor(5, low=0.1, grad=False)))
    yield Sample("probabilities", _soft(make, 6, 5), {"label_smoothing": 0.1})
    yield Sample("none, smoothed", _call(make, 4, 6), {"reduction": "none", "label_smoothing": 0.1})
    yield Sample("sum, ignored rows", _call(make, 7, 5, ignored=-100), {"reduction": "sum"})
    yield Sample("smoothed mean of images", _call(make, 2, 5, 3, 4, ignored=-1), {
        "label_smoothing": 0.2, "ignore_index": -1})  # fmt: skip
    yield Sample("none of sequences", _call(make, 3, 7, 4, ignored=2), {"reduction": "none", "ignore_index": 2})
    yield Sample("one row without batch", _call(make, 9))
    yield Sample("one class", _call(make, 4, 1))
    yield Sample("all smoothed", _call(make, 5, 8), {"label_smoothing": 1.0})
    yield Sample("large logits", _call(make, 5, 33, low=-300, high=300))
    yield Sample("many classes", _call(make, 3, 1037))
    yield Sample("more rows than a partial sum", _call(make, 1030, 3, ignored=-100))
    x, target = _call(make, 4, 6)
    masked = x.detach().clone()
    masked[:, 4:] = -torch.inf
    yield Sample("classes that cannot be", (masked.requires_grad_(), target % 4))
    yield Sample("every row ignored", (x, torch.full_like(target, -100)))
    yield Sample("no rows", _call(make, 0, 4))
    yield Sample("no rows, sum", _call(make, 0, 4), {"reduction": "sum"})
    nine, five = make.tensor(9, low=0.1, grad=False), make.tensor(5, low=0.1, grad=False)
    yield Sample("weighted, smoothed, none", (*_call(make, 3, 9, 2, ignored=-100), nine), {
        "reduction": "none", "label_smoothing": 0.3})  # fmt: skip
    yield Sample("z loss and cap", _call(make, 5, 19, ignored=-100, low=-8, high=8), {"z_loss": 0.01, "softcap": 3.0})
    yield Sample("everything of images", (*_call(make, 2, 5, 3, 2), five), {
        "z_loss": 0.1, "softcap": 2.0, "label_smoothing": 0.1, "reduction": "none"})  # fmt: skip
    yield Sample("weighted probabilities of images", (*_soft(make, 2, 5, 3, low=-4, high=4), five), {
        "reduction": "none", "z_loss": 0.1, "softcap": 2.0})  # fmt: skip
    yield Sample("many probabilities", _soft(make, 3, 1037), {"reduction": "sum"})
    yield Sample("one row of probabilities", _soft(make, 7))
    yield Sample("no rows of probabilities", _soft(make, 0, 4))
    fixed = make.tensor(4, 6, low=0.0, grad=False)
    yield Sample("probabilities without gradient", (make.tensor(4, 6), fixed))
    if make.dtype in HALF_TYPES:
        yield Sample("float32 probabilities", (make.tensor(4, 21), make.tensor(4, 21, low=0.0, dtype=torch.float32)))


def _draw(make: Make, rng: random.Random) -> Sample:
    soft = rng.random() < 0.3
    # One class has all of the softmax and of the target: its gradient is exactly zero, and so would the bound be.
    classes = draw_size(rng, 200) + 2
    shape = [draw_size(rng, 12), classes, *(draw_size(rng, 5) for _ in range(rng.randint(0, 2)))]
    ignored = None if soft else rng.choice([None, -100, 0])
    kwargs = {
        "reduction": rng.choice(ops.loss.REDUCTIONS),
        "label_smoothing": rng.choice([0.0, 0.1]),
        "ignore_index": -100 if ignored is None else ignored,
        "z_loss": rng.choice([0.0, 0.0, 0.1]),
        "softcap": rng.choice([None, None, 4.0]),
    }
    call = _soft(make, *shape, low=-8, high=8) if soft else _call(make, *shape, ignored=ignored, low=-8, high=8)
    weight = rng.choice([None, make.tensor(shape[1], low=0.0, grad=False)])
    return Sample(f"{shape} {soft} {kwargs}", (*call, weight), kwargs)


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    x, target = _call(make, 4, 5)
    yield BadInput("input dtype", (x.detach().long(), target), "input must be float32, .* got torch.int64")
    yield BadInput("input rank", (x.sum(), target), "input must have at least 1 dimension, got 0")
    yield BadInput("no class", (make.tensor(4, 0), target), r"input must have at least 1 class, got shape \(4, 0\)")
    yield BadInput("target dtype", (x, target.int()), "target must be torch.int64, got torch.int32")
    yield BadInput("probabilities' dtype", (x, x.detach().half()), "target must be torch.int64, .* got torch.float16")
    yield BadInput(
        "probabilities' shape", (x, x.detach()[:3]), r"target must have the shape of input \(4, 5\), got \(3, 5\)"
    )
    yield BadInput(
        "ignored probabilities", (x, x.detach()), "ignore_index must be negative .* got 1", {"ignore_index": 1}
    )
    yield BadInput(
        "weight dtype", (x, target, x.detach()[0].half()), "weight must be torch.float32 .* got torch.float16"
    )
    yield BadInput(
        "weight shape", (x, target, make.tensor(4, grad=False)), r"weight must have shape \(5,\), got \(4,\)"
    )
    yield BadInput("z_loss", (x, target), "z_loss must not be negative, got -1", {"z_loss": -1.0})
    yield BadInput("softcap", (x, target), "softcap must not be negative, got -2", {"softcap": -2.0})
    yield BadInput("target shape", (x, target[:3]), r"target must have shape \(4,\), got \(3,\)")
    yield BadInput("target rank", (x, target[:, None]), r"target must have shape \(4,\), got \(4, 1\)")
    yield BadInput("smoothing", (x, target), "label_smoothing must be between 0 and 1, got 1.5",
                   {"label_smoothing": 1.5})  # fmt: skip
    yield BadInput("reduction", (x, target), "reduction must be one of none, mean, sum, got 'max'",
                   {"reduction": "max"})  # fmt: skip


def torch_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """torch's own, and what it lacks out of its pieces."""
    options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    if softcap:
        input = softcap * (input / softcap).tanh()
    if weight is not None:
        weight = weight.to(input.dtype)
    if not z_loss:
        return F.cross_entropy(input, target, weight, reduction=reduction, **options)
    rows = F.cross_entropy(input, target, weight, reduction="none", **options)
    lse = input.logsumexp(1 if input.dim() > 1 else 0)
    counts = torch.ones_like(lse) if target.is_floating_point() else (target != ignore_index).to(lse.dtype)
    rows = rows + z_loss * lse * lse * counts
    if reduction == "none":
        return rows
    rows = rows[counts > 0]  # Where no row counts, their mean is NaN and their gradients are zero, as torch's.
    if weight is not None and not target.is_floating_point():
        counts = counts * weight[target.clamp(0, weight.numel() - 1)]
    return rows.sum() / counts.sum() if reduction == "mean" else rows.sum()


def _cost(input: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "mean", **_: Any) -> Cost:
    classes = input.shape[0 if input.dim() == 1 else 1]
    loss = input.numel() // classes if reduction == "none" else 1
    return Cost(4 * input.numel(), nbytes(input, target, weight) + loss * input.element_size())


add(
    OpSpec(
        name="cross_entropy",
        family="loss",
        op=ops.cross_entropy,
        torch_op=torch_cross_entropy,
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("cross_entropy", "cross_entropy_backward"),
    )
)


# ---- nll_loss ----


def _nll_samples(make: Make) -> Iterator[Sample]:
    five = make.tensor(5, low=0.1, grad=False)
    yield Sample("mean", _call(make, 6, 5))
    yield Sample("weighted mean", (*_call(make, 7, 5, ignored=-100), five))
    yield Sample("none of images", _call(make, 2, 5, 3, 4, ignored=-1), {"reduction": "none", "ignore_index": -1})
    yield Sample("weighted sum of sequences", (*_call(make, 3, 5, 4, ignored=2), five), {
        "reduction": "sum", "ignore_index": 2})  # fmt: skip
    yield Sample("one row without batch", _call(make, 9))
    yield Sample("one class", _call(make, 4, 1))
    yield Sample("more rows than a partial sum", _call(make, 1030, 3, ignored=-100))
    x, target = _call(make, 4, 6)
    yield Sample("every row ignored", (x, torch.full_like(target, -100)))
    yield Sample("no rows", _call(make, 0, 4))
    yield Sample("no rows, sum", _call(make, 0, 4), {"reduction": "sum"})


def _nll_draw(make: Make, rng: random.Random) -> Sample:
    shape = [draw_size(rng, 12), draw_size(rng, 200) + 1, *(draw_size(rng, 5) for _ in range(rng.randint(0, 2)))]
    ignored = rng.choice([None, -100, 0])
    kwargs = {
        "reduction": rng.choice(ops.loss.REDUCTIONS),
        "ignore_index": -100 if ignored is None else ignored,
    }
    weight = rng.choice([None, make.tensor(shape[1], low=0.0, grad=False)])
    return Sample(f"{shape} {kwargs}", (*_call(make, *shape, ignored=ignored), weight), kwargs)


def _nll_bad_inputs(make: Make) -> Iterator[BadInput]:
    x, target = _call(make, 4, 5)
    yield BadInput("input dtype", (x.detach().long(), target), "input must be float32, .* got torch.int64")
    yield BadInput("input rank", (x.sum(), target), "input must have at least 1 dimension, got 0")
    yield BadInput("target dtype", (x, target.int()), "target must be torch.int64, got torch.int32")
    yield BadInput("target shape", (x, target[:3]), r"target must have shape \(4,\), got \(3,\)")
    yield BadInput("weight shape", (x, target, make.tensor(4)), r"weight must have shape \(5,\), got \(4,\)")
    yield BadInput("reduction", (x, target), "reduction must be one of none, mean, sum, got 'max'",
                   {"reduction": "max"})  # fmt: skip


def _torch_nll(input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
    return F.nll_loss(input, target, weight, **options)


def _nll_cost(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "mean", **_: Any
) -> Cost:
    """One element of each row."""
    rows = target.numel()
    return Cost(2 * rows, nbytes(target, weight) + (rows + (rows if reduction == "none" else 1)) * input.element_size())


add(
    OpSpec(
        name="nll_loss",
        family="loss",
        op=ops.nll_loss,
        torch_op=_torch_nll,
        samples=_nll_samples,
        draw=_nll_draw,
        bad_inputs=_nll_bad_inputs,
        cost=_nll_cost,
        kernels=("nll_loss", "nll_loss_backward"),
    )
)
