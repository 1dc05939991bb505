"""OpSpecs of the losses behind a linear layer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes
from warpwright.testing.specs.loss import torch_cross_entropy


def _call(make: Make, rows: tuple[int, ...], features: int, classes: int, ignored: int | None = None) -> Any:
    """(input, weight, target); every third target is `ignored`, if one is named."""
    target = make.integers(*rows, low=0, high=classes)
    if ignored is not None and target.dim() > 0:
        target.view(-1)[::3] = ignored
    return make.tensor(*rows, features), make.tensor(classes, features), target


def _samples(make: Make) -> Iterator[Sample]:
    yield Sample("mean", (*_call(make, (7,), 5, 9), make.tensor(9)), {"chunk_rows": 3})
    yield Sample("none", _call(make, (2, 4), 5, 9, -100), {"reduction": "none", "chunk_rows": 3})
    yield Sample("sum", _call(make, (7,), 6, 8, -100), {"reduction": "sum"})
    yield Sample("none with bias", (*_call(make, (6,), 4, 7), make.tensor(7)), {"reduction": "none"})
    yield Sample("mean over some rows, smoothed", _call(make, (8,), 6, 11, 2), {
        "label_smoothing": 0.2, "ignore_index": 2, "chunk_rows": 4})  # fmt: skip
    yield Sample("z loss and cap", _call(make, (2, 3), 7, 13, -100), {
        "z_loss": 0.05, "softcap": 1.5, "reduction": "sum", "chunk_rows": 2})  # fmt: skip
    weighted = {"class_weight": make.tensor(9, low=0.1, grad=False), "chunk_rows": 3}
    yield Sample("weighted mean", (*_call(make, (7,), 5, 9, -100), make.tensor(9)), weighted)
    yield Sample("weighted none, smoothed, z loss", _call(make, (2, 4), 5, 9, -100), {
        **weighted, "reduction": "none", "label_smoothing": 0.2, "z_loss": 0.05})  # fmt: skip
    yield Sample("one row without batch", _call(make, (), 5, 9))
    yield Sample("one class", _call(make, (4,), 5, 1))
    yield Sample("many classes", _call(make, (5,), 33, 1037), {"chunk_rows": 2})
    input, weight, target = _call(make, (5,), 4, 6)
    yield Sample("every row ignored", (input, weight, torch.full_like(target, -100)))
    yield Sample("no rows, sum", (*_call(make, (0,), 4, 6), make.tensor(6)), {"reduction": "sum"})
    yield Sample("no rows", _call(make, (0,), 4, 6))
    yield Sample("frozen weight", (make.tensor(4, 5), make.tensor(6, 5, grad=False), make.integers(4, low=0, high=6)))
    yield Sample("frozen input", (make.tensor(4, 5, grad=False), make.tensor(6, 5), make.integers(4, low=0, high=6)), {
        "chunk_rows": 3})  # fmt: skip


def _draw(make: Make, rng: random.Random) -> Sample:
    rows = tuple(draw_size(rng, 20) for _ in range(rng.randint(1, 2)))
    features, classes = draw_size(rng) + 1, draw_size(rng, 200) + 1
    ignored = rng.choice([None, -100, 0])
    kwargs: dict[str, Any] = {
        "reduction": rng.choice(ops.loss.REDUCTIONS),
        "label_smoothing": rng.choice([0.0, 0.1]),
        "ignore_index": -100 if ignored is None else ignored,
        "z_loss": rng.choice([0.0, 0.0, 0.1]),
        "softcap": rng.choice([None, None, 4.0]),
        "chunk_rows": rng.choice([None, 1, 5]),
    }
    bias = rng.choice([None, make.tensor(classes)])
    name = f"{rows} {features} {classes} {kwargs}"
    kwargs["class_weight"] = rng.choice([None, make.tensor(classes, low=0.1, grad=False)])
    return Sample(name, (*_call(make, rows, features, classes, ignored), bias), kwargs)


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    input, weight, target = _call(make, (4,), 5, 6)
    yield BadInput("input rank", (input.sum(), weight, target), "input must have at least 1 dimension, got 0")
    yield BadInput("input dtype", (input.long(), weight, target), "input must be float32, .* got torch.int64")
    yield BadInput("weight rank", (input, weight[0], target), "weight must have 2 dimensions, got 1")
    yield BadInput("weight dtype", (input, weight.half(), target), "weight must have the dtype of input")
    yield BadInput("features", (input, make.tensor(6, 4), target), "weight has 4 input features, input has 5")
    yield BadInput("no class", (input, make.tensor(0, 5), target), r"weight must have at least 1 class, .* \(0, 5\)")
    yield BadInput("bias shape", (input, weight, target, make.tensor(5)), r"bias must have shape \(6,\), got \(5,\)")
    yield BadInput("target dtype", (input, weight, target.int()), "target must be torch.int64, got torch.int32")
    yield BadInput("target shape", (input, weight, target[:3]), r"target must have shape \(4,\), got \(3,\)")
    half, short = make.tensor(6, grad=False).half(), make.tensor(5, grad=False)
    yield BadInput("class_weight dtype", (input, weight, target), "class_weight must be .* got torch.float16", {
        "class_weight": half})  # fmt: skip
    yield BadInput("class_weight shape", (input, weight, target), r"class_weight must have shape \(6,\), got \(5,\)", {
        "class_weight": short})  # fmt: skip
    for name, value, message in (
        ("label_smoothing", 2.0, "must be between 0 and 1, got 2"), ("z_loss", -1.0, "must not be negative, got -1"),
        ("softcap", -1.0, "must not be negative, got -1"), ("chunk_rows", 0, "must be positive, got 0"),
        ("reduction", "max", "must be one of none, mean, sum, got 'max'"),
    ):  # fmt: skip
        yield BadInput(name, (input, weight, target), f"{name} {message}", {name: value})


def _torch_linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    class_weight: Tensor | None = None,
    chunk_rows: int | None = None,
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    logits = F.linear(input, weight, bias).reshape(target.numel(), weight.shape[0])
    loss = torch_cross_entropy(logits, target.reshape(-1), class_weight, reduction=reduction, **options)
    return loss.view(target.shape) if reduction == "none" else loss


def _cost(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
    **_: Any,
) -> Cost:
    """The product and the loss; logits are neither written nor read."""
    rows, classes, width = target.numel(), *weight.shape
    flops = 2 * rows * classes * width + 4 * rows * classes
    loss = rows if reduction == "none" else 1
    return Cost(flops, nbytes(input, weight, target, bias, class_weight) + loss * input.element_size())


add(
    OpSpec(
        name="linear_cross_entropy",
        family="linear_loss",
        op=ops.linear_cross_entropy,
        torch_op=_torch_linear_cross_entropy,
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("linear_cross_entropy", "linear_cross_entropy_backward", "linear_loss_backward"),
    )
)
