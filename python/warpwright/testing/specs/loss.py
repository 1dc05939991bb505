"""OpSpecs of the loss family."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def _call(make: Make, *shape: int, ignored: int | None = None, low: float = -1.0, high: float = 1.0) -> Any:
    """Logits of `shape` and targets; every third target is `ignored`, if one is named."""
    classes = shape[0] if len(shape) == 1 else shape[1]
    target = make.integers(*(shape[:1] + shape[2:] if len(shape) > 1 else ()), low=0, high=classes)
    if ignored is not None and target.dim() > 0:
        target.view(-1)[::3] = ignored
    return make.tensor(*shape, low=low, high=high), target


def _samples(make: Make) -> Iterator[Sample]:
    yield Sample("mean", _call(make, 6, 5))
    yield Sample("sum, ignored rows", _call(make, 7, 5, ignored=-100), {"reduction": "sum"})
    yield Sample("none, smoothed", _call(make, 4, 6), {"reduction": "none", "label_smoothing": 0.1})
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


def _draw(make: Make, rng: random.Random) -> Sample:
    shape = [draw_size(rng, 12), draw_size(rng, 200) + 1, *(draw_size(rng, 5) for _ in range(rng.randint(0, 2)))]
    ignored = rng.choice([None, -100, 0])
    kwargs = {
        "reduction": rng.choice(ops.loss.REDUCTIONS),
        "label_smoothing": rng.choice([0.0, 0.1]),
        "ignore_index": -100 if ignored is None else ignored,
    }
    return Sample(f"{shape} {kwargs}", _call(make, *shape, ignored=ignored, low=-8, high=8), kwargs)


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    x, target = _call(make, 4, 5)
    yield BadInput("input dtype", (x.detach().long(), target), "input must be float32, .* got torch.int64")
    yield BadInput("input rank", (x.sum(), target), "input must have at least 1 dimension, got 0")
    yield BadInput("no class", (make.tensor(4, 0), target), r"input must have at least 1 class, got shape \(4, 0\)")
    yield BadInput("target dtype", (x, target.int()), "target must be torch.int64, got torch.int32")
    yield BadInput("target shape", (x, target[:3]), r"target must have shape \(4,\), got \(3,\)")
    yield BadInput("target rank", (x, target[:, None]), r"target must have shape \(4,\), got \(4, 1\)")
    yield BadInput("smoothing", (x, target), "label_smoothing must be between 0 and 1, got 1.5",
                   {"label_smoothing": 1.5})  # fmt: skip
    yield BadInput("reduction", (x, target), "reduction must be one of none, mean, sum, got 'max'",
                   {"reduction": "max"})  # fmt: skip


def _cost(input: Tensor, target: Tensor, *, reduction: str = "mean", **_: Any) -> Cost:
    loss = target.numel() if reduction == "none" else 1
    return Cost(4 * input.numel(), nbytes(input, target) + loss * input.element_size())


add(
    OpSpec(
        name="cross_entropy",
        family="loss",
        op=ops.cross_entropy,
        torch_op=F.cross_entropy,
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("cross_entropy", "cross_entropy_backward"),
    )
)
