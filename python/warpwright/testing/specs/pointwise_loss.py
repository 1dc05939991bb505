"""OpSpecs of the losses of single elements."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes

# ---- binary_cross_entropy_with_logits ----


def _bce_samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    target = t(5, 7, low=0.0)
    weights = {"pos_weight": t(7, low=0.5, high=3.0, grad=False)}
    yield Sample("mean", (t(5, 7, low=-4, high=4), target))
    yield Sample("weighted none", (t(5, 7), target, t(5, 1, low=0.0, grad=False)), {"reduction": "none", **weights})
    yield Sample("weighted sum", (t(5, 7), target, t(5, 7, low=0.0, grad=False)), {"reduction": "sum", **weights})
    yield Sample("frozen target", (t(3, 4, 2), t(3, 4, 2, low=0.0, grad=False)))
    yield Sample("large logits", (t(4, 9, low=-200, high=200), t(4, 9, low=0.0)), {"reduction": "none"})
    yield Sample("one element", (t(), t(low=0.0)))
    yield Sample("long rows", (t(2, 2500), t(2, 2500, low=0.0)))
    yield Sample("no rows", (t(0, 4), t(0, 4)), {"reduction": "sum"})


def _bce_draw(make: Make, rng: random.Random) -> Sample:
    shape = [draw_size(rng, 12) for _ in range(rng.randint(0, 3))]
    shape += [draw_size(rng, 300)] if shape else []
    weight = rng.choice([None, make.tensor(*shape[-1:], low=0.0, grad=False)])
    pos_weight = rng.choice([None, make.tensor(*shape[-1:], low=0.5, high=2.0, grad=False)])
    # The mean over nothing is NaN in all.
    kwargs = {"reduction": rng.choice(ops.loss.REDUCTIONS), "pos_weight": pos_weight}
    return Sample(f"{shape} {kwargs['reduction']}", (
        make.tensor(*shape, low=-8, high=8), make.tensor(*shape, low=0.0), weight), kwargs)  # fmt: skip


def _bce_bad_inputs(make: Make) -> Iterator[BadInput]:
    x, t = make.tensor(4, 5), make.tensor(4, 5, low=0.0)
    yield BadInput("input dtype", (x.long(), t), "input must be float32, .* got torch.int64")
    yield BadInput("target dtype", (x, t.half()), "target must have the dtype of input")
    yield BadInput("target shape", (x, t[:3]), r"target must have the shape of input \(4, 5\), got \(3, 5\)")
    yield BadInput("weight shape", (x, t, make.tensor(4)), r"weight must broadcast .* \(4, 5\), got \(4,\)")
    yield BadInput("pos_weight shape", (x, t), r"pos_weight must broadcast", {"pos_weight": make.tensor(2, 4, 5)})
    yield BadInput("reduction", (x, t), "reduction must be one of none, mean, sum, got 'batchmean'", {
        "reduction": "batchmean"})  # fmt: skip


def _bce_cost(input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> Cost:
    loss = input.numel() if options.get("reduction") == "none" else 1
    read = nbytes(input, target, weight, options.get("pos_weight"))
    return Cost(10 * input.numel(), read + loss * input.element_size())


add(
    OpSpec(
        name="binary_cross_entropy_with_logits",
        family="pointwise_loss",
        op=ops.binary_cross_entropy_with_logits,
        torch_op=F.binary_cross_entropy_with_logits,
        samples=_bce_samples,
        draw=_bce_draw,
        bad_inputs=_bce_bad_inputs,
        cost=_bce_cost,
        kernels=("binary_cross_entropy_with_logits", "binary_cross_entropy_with_logits_backward"),
    )
)


# ---- kl_div ----


def _kl_samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    yield Sample("mean", (t(5, 7, low=-4, high=0), t(5, 7, low=0.1)))
    yield Sample("batchmean of logarithms", (t(5, 7, low=-4, high=0), t(5, 7, low=-4, high=0)), {
        "reduction": "batchmean", "log_target": True})  # fmt: skip
    yield Sample("none", (t(3, 4, 2, low=-4, high=0), t(3, 4, 2, low=0.1)), {"reduction": "none"})
    zeros = t(4, 6, low=0.1, grad=False)
    zeros[:, ::2] = 0
    yield Sample("sum, zeros in a frozen target", (t(4, 6, low=-4, high=0), zeros), {"reduction": "sum"})
    yield Sample("one element", (t(), t(low=0.1)))
    yield Sample("long rows", (t(2, 2500, low=-4, high=0), t(2, 2500, low=-4, high=0)), {"log_target": True})
    yield Sample("no rows", (t(0, 4), t(0, 4)), {"reduction": "sum"})


def _kl_draw(make: Make, rng: random.Random) -> Sample:
    shape = [draw_size(rng, 12) for _ in range(rng.randint(1, 3))] + [draw_size(rng, 300)]
    logarithms = rng.random() < 0.5
    target = make.tensor(*shape, low=-4 if logarithms else 0.1, high=0 if logarithms else 1)
    reduction = rng.choice(["none", "mean", "sum", "batchmean"])
    kwargs = {"reduction": reduction, "log_target": logarithms}
    return Sample(f"{shape} {kwargs}", (make.tensor(*shape, low=-8, high=0), target), kwargs)


def _kl_bad_inputs(make: Make) -> Iterator[BadInput]:
    x, t = make.tensor(4, 5), make.tensor(4, 5, low=0.1)
    yield BadInput("input dtype", (x.long(), t), "input must be float32, .* got torch.int64")
    yield BadInput("target dtype", (x, t.half()), "target must have the dtype of input")
    yield BadInput("target shape", (x, t[:3]), r"target must have the shape of input \(4, 5\), got \(3, 5\)")
    yield BadInput("reduction", (x, t), "reduction must be one of none, mean, sum, batchmean, got 'max'", {
        "reduction": "max"})  # fmt: skip


def _torch_kl(input: Tensor, target: Tensor, *, reduction: str = "mean", log_target: bool = False) -> Tensor:
    if reduction == "mean":  # torch warns that it is not the mathematical one.
        return F.kl_div(input, target, reduction="none", log_target=log_target).mean()
    return F.kl_div(input, target, reduction=reduction, log_target=log_target)


def _kl_cost(input: Tensor, target: Tensor, **options: Any) -> Cost:
    loss = input.numel() if options.get("reduction") == "none" else 1
    return Cost(4 * input.numel(), nbytes(input, target) + loss * input.element_size())


add(
    OpSpec(
        name="kl_div",
        family="pointwise_loss",
        op=ops.kl_div,
        torch_op=_torch_kl,
        samples=_kl_samples,
        draw=_kl_draw,
        bad_inputs=_kl_bad_inputs,
        cost=_kl_cost,
        kernels=("kl_div", "kl_div_backward"),
    )
)
