"""OpSpecs of the dropout family."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from warpwright import ops
from warpwright.reference._philox import dropout_threshold, random_words
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def _torch_dropout(input: Tensor, p: float = 0.5, training: bool = True, *, seed: Tensor, offset: int = 0) -> Tensor:
    """torch's dropout with the mask of a seed."""
    if not training:
        return input
    cols = input.shape[-1] if input.dim() else 1
    words = random_words(seed, input.numel() // max(cols, 1), cols, offset).reshape(input.shape)
    noise = (words >= dropout_threshold(p)).to(input.dtype)
    return input * (noise * 0 if p == 1 else noise / (1 - p))


def _torch_dropout_add(
    input: Tensor,
    residual: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: Tensor,
    offset: int = 0,
) -> Tensor:
    dropped = _torch_dropout(input, p, training, seed=seed, offset=offset)
    return dropped if residual is None else residual + dropped


def _seed(make: Make) -> Tensor:
    return make.integers(1, low=-(2**62), high=2**62)


def _shapes(make: Make) -> Iterator[tuple[str, Tensor]]:
    t = make.tensor
    yield "plain", t(4, 64)
    yield "odd width", t(3, 5, 33)
    yield "a long row", t(4101)
    yield "one column", t(9, 1)
    yield "large values", t(3, 30, low=-100, high=100)
    yield "no dimensions", t()
    yield "no rows", t(0, 8)
    yield "no columns", t(3, 0)


def _dropout_samples(make: Make) -> Iterator[Sample]:
    for name, x in _shapes(make):
        yield Sample(name, (x, 0.3), {"seed": _seed(make), "offset": 7})
    yield Sample("nothing is lost", (make.tensor(4, 24), 0.0), {"seed": _seed(make)})
    yield Sample("everything is lost", (make.tensor(4, 24), 1.0), {"seed": _seed(make)})
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0] * 4, dtype=make.dtype, device=make.device)
    yield Sample("NaN and infinities", (values.requires_grad_(),), {"seed": _seed(make)})


def _dropout_add_samples(make: Make) -> Iterator[Sample]:
    for name, x in _shapes(make):
        yield Sample(name, (x, make.tensor(*x.shape), 0.3), {"seed": _seed(make), "offset": -2})
    yield Sample("no residual", (make.tensor(4, 24),), {"seed": _seed(make), "offset": 2**33 + 5})
    yield Sample("everything is lost", (make.tensor(4, 24), make.tensor(4, 24), 1.0), {"seed": _seed(make)})


def _draw(make: Make, rng: random.Random) -> tuple[str, Tensor, float, dict[str, object]]:
    shape = [draw_size(rng, 9) for _ in range(rng.randint(0, 3))] + [draw_size(rng)]
    p = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    return f"{shape}, {p}", make.tensor(*shape), p, {"seed": _seed(make), "offset": rng.randrange(2**32)}


def _draw_dropout(make: Make, rng: random.Random) -> Sample:
    name, x, p, kwargs = _draw(make, rng)
    return Sample(name, (x, p), kwargs)


def _draw_dropout_add(make: Make, rng: random.Random) -> Sample:
    name, x, p, kwargs = _draw(make, rng)
    return Sample(name, (x, make.tensor(*x.shape) if rng.random() < 0.7 else None, p), kwargs)


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    x, seed = make.tensor(4, 8), _seed(make)
    yield BadInput("input dtype", (x.detach().long(),), r"input must be float32, .* got torch.int64", {"seed": seed})
    message = "seed must hold 1 element of torch.int64, got"
    yield BadInput("seed dtype", (x,), rf"{message} 1 of torch.int32", {"seed": seed.int()})
    yield BadInput("seed shape", (x,), rf"{message} 2 of torch.int64", {"seed": seed.expand(2)})


def _dropout_bad_inputs(make: Make) -> Iterator[BadInput]:
    yield from _bad_inputs(make)
    x, seed = make.tensor(4, 8), _seed(make)
    yield BadInput("p", (x, 1.5), r"p must be between 0 and 1, got 1.5", {"seed": seed})


def _dropout_add_bad_inputs(make: Make) -> Iterator[BadInput]:
    yield from _bad_inputs(make)
    x, seed = make.tensor(4, 8), _seed(make)
    yield BadInput("p", (x, x, -0.5), r"p must be between 0 and 1, got -0.5", {"seed": seed})
    message = r"residual must have the shape of input \(4, 8\), got \(8,\)"
    yield BadInput("residual shape", (x, make.tensor(8)), message, {"seed": seed})
    wrong = x.detach().double()
    yield BadInput("residual dtype", (x, wrong), "residual must have the dtype of input", {"seed": seed})


def _dropout_cost(
    input: Tensor, p: float = 0.5, training: bool = True, *, seed: Tensor | None = None, offset: int = 0
) -> Cost:
    return Cost(input.numel(), 2 * nbytes(input))


def _dropout_add_cost(
    input: Tensor,
    residual: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: Tensor | None = None,
    offset: int = 0,
) -> Cost:
    return Cost(2 * input.numel(), 2 * nbytes(input) + nbytes(residual))


add(
    OpSpec(
        name="dropout",
        family="dropout",
        op=ops.dropout,
        torch_op=_torch_dropout,
        samples=_dropout_samples,
        draw=_draw_dropout,
        bad_inputs=_dropout_bad_inputs,
        cost=_dropout_cost,
        kernels=("dropout_add", "dropout_add_backward"),
    )
)
add(
    OpSpec(
        name="dropout_add",
        family="dropout",
        op=ops.dropout_add,
        torch_op=_torch_dropout_add,
        samples=_dropout_add_samples,
        draw=_draw_dropout_add,
        bad_inputs=_dropout_add_bad_inputs,
        cost=_dropout_add_cost,
        kernels=("dropout_add", "dropout_add_backward"),
    )
)
