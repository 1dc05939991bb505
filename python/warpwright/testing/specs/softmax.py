"""OpSpecs of the softmax family."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from warpwright import ops
from warpwright.reference.softmax import dropped
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def _torch_softmax(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def torch_op(
        input: Tensor,
        dim: int = -1,
        *,
        scale: float = 1.0,
        mask: Tensor | None = None,
        causal: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        logits = input if dtype is None else input.to(dtype)
        if scale != 1:
            logits = logits * scale
        if mask is not None and mask.dtype != torch.bool:
            logits = logits + mask
        drop = dropped(mask, causal, input)
        return function(logits if drop is None else logits.masked_fill(drop, -torch.inf), dim)

    return torch_op


def _keep(make: Make, *shape: int) -> Tensor:
    """A mask that keeps about two thirds of each row, and its first element."""
    keep = make.integers(*shape, low=0, high=3) > 0
    keep[..., 0] = True
    return keep


def _special(make: Make) -> Tensor:
    """Rows with infinities of both signs, with NaN, and without anything but minus infinity."""
    inf, nan = torch.inf, torch.nan
    rows = [[1, -inf, 2, 0.5], [1, inf, 2, 0.5], [1, nan, 2, 0.5], [-inf] * 4, [-inf, 3, -inf, -inf]]
    return torch.tensor(rows, dtype=make.dtype, device=make.device).requires_grad_()


def _samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    yield Sample("plain", (t(4, 64, low=-4, high=4),))
    yield Sample("a dimension between", (t(2, 5, 33, low=-4, high=4), 1))
    yield Sample("mask", (t(2, 3, 4, 40, low=-4, high=4),), {"scale": 0.3, "mask": _keep(make, 4, 40)})
    yield Sample("causal", (t(2, 5, 7, low=-4, high=4), 2), {"causal": True, "scale": 2.0})
    yield Sample("first dimension", (t(6, 9, low=-4, high=4), 0), {"scale": -1.5})
    added = t(3, 1, 17, grad=False)
    yield Sample("added mask", (t(3, 4, 17, low=-4, high=4), -1), {"mask": added})
    yield Sample("added mask, causal", (t(3, 4, 17, low=-4, high=4), -1), {"mask": added, "causal": True})
    yield Sample("mask along the first dimension", (t(40, 35), 0), {"mask": _keep(make, 40, 1)})
    yield Sample("more rows than columns", (t(6, 4),), {"causal": True})
    nothing = torch.zeros(3, 8, dtype=torch.bool, device=make.device)
    nothing[1] = True
    yield Sample("rows that are masked whole", (t(3, 8),), {"mask": nothing})
    yield Sample("large logits", (t(3, 100, low=-3e4, high=3e4),))
    yield Sample("small logits", (t(5, 24, low=-1e-3, high=1e-3),))
    yield Sample("infinities and NaN", (_special(make),))
    yield Sample("one column", (t(5, 1),))
    yield Sample("no dimensions", (t(),))
    yield Sample("no rows", (t(0, 8),))
    yield Sample("no columns", (t(3, 0),))
    for cols in (300, 800, 2080, 257, 1037):  # Each way to give a row to threads.
        yield Sample(f"{cols} columns", (t(2, cols, low=-4, high=4),))


def _draw(make: Make, rng: random.Random) -> Sample:
    shape = [draw_size(rng, 9) for _ in range(rng.randint(0, 3))] + [draw_size(rng)]
    dim = rng.randrange(-len(shape), len(shape))
    kwargs: dict[str, Any] = {"scale": rng.choice([1.0, 0.5, -2.0])}
    if rng.random() < 0.5:
        sizes = [rng.choice([1, size]) for size in shape[rng.randrange(len(shape)) :]]
        drawn = make.tensor(*sizes, grad=False)
        kwargs["mask"] = rng.choice([drawn, drawn > -0.8])
    if len(shape) > 1 and dim in (-1, len(shape) - 1):
        kwargs["causal"] = rng.random() < 0.5
    return Sample(f"{shape}, {dim}, {kwargs}", (make.tensor(*shape, low=-4, high=4), dim), kwargs)


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    x = make.tensor(4, 8)
    yield BadInput("dtype", (x.detach().long(),), r"input must be float32, .* got torch.int64")
    yield BadInput("dim", (x, 2), r"dim must be between -2 and 1 for input \(4, 8\), got 2")
    message = r"causal needs input of at least 2 dimensions and dim to be the last, got \(4, 8\) and 0"
    yield BadInput("causal along another dimension", (x, 0), message, {"causal": True})
    yield BadInput("causal row", (make.tensor(8),), r"causal needs input .* got \(8,\) and -1", {"causal": True})
    wrong = torch.zeros(4, 8, dtype=torch.int64, device=make.device)
    yield BadInput("mask dtype", (x,), r"mask must be torch.bool or have the dtype of input", {"mask": wrong})
    message = r"mask must be broadcastable to input \(4, 8\), got \(4, 7\)"
    yield BadInput("mask shape", (x,), message, {"mask": make.tensor(4, 7, grad=False)})
    message = r"mask must be broadcastable to input \(4, 8\), got \(1, 4, 8\)"
    yield BadInput("mask dimensions", (x,), message, {"mask": make.tensor(1, 4, 8)})
    yield BadInput("no dimensions", (make.tensor(),), r"at least 1 dimension, got 0", {"mask": make.tensor(grad=False)})


def _cost(
    input: Tensor,
    dim: int = -1,
    *,
    scale: float = 1.0,
    mask: Tensor | None = None,
    causal: bool = False,
    dtype: torch.dtype | None = None,
) -> Cost:
    """Maximum, difference, exponential, sum, quotient."""
    flops = 5 + (scale != 1) + (mask is not None)
    return Cost(flops * input.numel(), 2 * nbytes(input) + nbytes(mask))


for _name, _function in (("softmax", torch.softmax), ("log_softmax", torch.log_softmax)):
    add(
        OpSpec(
            name=_name,
            family="softmax",
            op=getattr(ops, _name),
            torch_op=_torch_softmax(_function),
            samples=_samples,
            draw=_draw,
            bad_inputs=_bad_inputs,
            cost=_cost,
            kernels=("softmax", "softmax_backward"),
        )
    )
