"""OpSpecs of the embedding family."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def _call(make: Make, tokens: tuple[int, ...], num_embeddings: int, cols: int) -> tuple[Tensor, Tensor]:
    return make.integers(*tokens, low=0, high=max(num_embeddings, 1)), make.tensor(num_embeddings, cols)


def _samples(make: Make) -> Iterator[Sample]:
    yield Sample("sequences", _call(make, (2, 5), 7, 16))
    # A row without a gradient and a divided one are no derivatives: too wide for gradcheck, which takes small samples.
    yield Sample("padding, odd width", (*_call(make, (3, 6), 5, 83), 2))
    yield Sample("padding from the end", (*_call(make, (9,), 4, 104), -1))
    yield Sample("scaled by frequency", _call(make, (12,), 5, 88), {"scale_grad_by_freq": True})
    index, weight = _call(make, (4, 3), 6, 8)
    yield Sample("int32", (index.int(), weight))
    yield Sample("one token", (index[0, 0], weight))
    yield Sample("no tokens", (index[:0], weight))
    yield Sample("no columns", _call(make, (3,), 4, 0))
    yield Sample("more than a tile of columns", _call(make, (3,), 3, 1160))
    # Whole pieces of 64 tokens, the rest of one, and a row of exactly one piece; tokens of other rows between them.
    many = torch.cat((torch.full((200,), 1), torch.full((64,), 3), make.integers(30, low=0, high=3).cpu()))
    shuffled = many[torch.randperm(many.numel(), generator=make.generator)].to(make.device)
    yield Sample("many tokens of a row", (shuffled, make.tensor(5, 9)))
    yield Sample("many tokens of a row, scaled", (shuffled, make.tensor(5, 32), 0), {"scale_grad_by_freq": True})
    yield Sample("one row for all", (make.integers(640, low=0, high=1), make.tensor(3, 8)))


def _draw(make: Make, rng: random.Random) -> Sample:
    num_embeddings = draw_size(rng, 20) + 1
    tokens = tuple(draw_size(rng, 12) for _ in range(rng.randint(0, 3)))
    index, weight = _call(make, tokens, num_embeddings, draw_size(rng, 70))
    padding = rng.choice([None, 0, -1, num_embeddings - 1])
    kwargs: dict[str, Any] = {"padding_idx": padding, "scale_grad_by_freq": rng.random() < 0.5}
    return Sample(f"{tokens} of {tuple(weight.shape)} {kwargs}", (index, weight), kwargs)


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    index, weight = _call(make, (4,), 5, 8)
    yield BadInput(
        "input dtype", (index.float(), weight), "input must be torch.int64 or torch.int32, got torch.float32"
    )
    yield BadInput("weight dtype", (index, weight.detach().long()), "weight must be float32, .* got torch.int64")
    yield BadInput("weight rank", (index, weight[0]), "weight must have 2 dimensions, got 1")
    yield BadInput("padding_idx", (index, weight, 5), r"padding_idx must be in \[-5, 5\), got 5")
    yield BadInput("negative padding_idx", (index, weight, -6), r"padding_idx must be in \[-5, 5\), got -6")
    yield BadInput("max_norm", (index, weight), "max_norm must be None: .* got 1.5", {"max_norm": 1.5})
    yield BadInput("sparse", (index, weight), "sparse must be False: .* got True", {"sparse": True})


def _cost(input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Cost:
    """A copy has no arithmetic: one operation an element, so that rates have a number."""
    elements = input.numel() * weight.shape[1]
    return Cost(elements, nbytes(input) + 2 * elements * weight.element_size())


add(
    OpSpec(
        name="embedding",
        family="embedding",
        op=ops.embedding,
        torch_op=F.embedding,
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("embedding", "embedding_backward"),
    )
)
