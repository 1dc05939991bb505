"""OpSpec of quantize_packed. tests/test_packed.py holds every backend to the bits of pack_weights."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from warpwright import ops
from warpwright.ops import PackedWeight
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def _tensors(packed: PackedWeight) -> tuple[Tensor, ...]:
    """The integers, one a byte, for a packed word's value says nothing of how far it is off; scales and zero points."""
    values = ops.unpack_weights(packed), packed.scale
    return values if packed.zero is None else (*values, packed.zero)


def _op(weight: Tensor, bits: int = 4, group_size: int | None = 128, symmetric: bool = True) -> tuple[Tensor, ...]:
    return _tensors(ops.quantize_packed(weight, bits, group_size, symmetric))


def _torch(weight: Tensor, bits: int = 4, group_size: int | None = 128, symmetric: bool = True) -> tuple[Tensor, ...]:
    return _tensors(ops.pack_weights(weight, bits, group_size, symmetric))


def _samples(make: Make) -> Iterator[Sample]:
    def weight(n: int, k: int) -> Tensor:
        return make.tensor(n, k, grad=False)

    for bits in (4, 8):
        for symmetric in (True, False):
            name = f"{bits} bits{'' if symmetric else ', zero points'}"
            yield Sample(name, (weight(7, 64), bits, 32, symmetric))
            yield Sample(f"{name}, ragged", (weight(5, 205), bits, 64, symmetric))
            yield Sample(f"{name}, one group", (weight(3, 70), bits, None, symmetric))
    yield Sample("a long row", (weight(2, 2500), 4, None, False))
    yield Sample("a long group", (weight(2, 1100), 4, 512))
    yield Sample("zeros", (torch.cat((weight(2, 32) * 0, weight(2, 32)), 1), 4, 32, False))
    yield Sample("one sign", (make.tensor(3, 40, low=0.5, grad=False), 8, 32, False))
    yield Sample("no rows", (weight(0, 40),))
    yield Sample("no columns", (weight(3, 0), 8))
    yield Sample("no columns, one group", (weight(3, 0), 4, None, False))


def _draw(make: Make, rng: random.Random) -> Sample:
    n, k = draw_size(rng, 40), draw_size(rng, 400)
    settings = rng.choice([4, 8]), rng.choice([32, 64, 128, None]), rng.random() < 0.5
    return Sample(f"{n} x {k}, {settings}", (make.tensor(n, k, grad=False), *settings))


def _bad_inputs(make: Make) -> Iterator[BadInput]:
    weight = make.tensor(6, 40, grad=False)
    yield BadInput("dtype", (weight.long(),), "weight must be float32, .* got torch.int64")
    yield BadInput("rank", (weight[0],), "weight must have 2 dimensions, got 1")
    yield BadInput("bits", (weight, 3), "bits must be 4 or 8, got 3")
    yield BadInput("group_size", (weight, 4, 48), "group_size must be None or a power of two of at least 32, got 48")


def _cost(weight: Tensor, bits: int = 4, group_size: int | None = 128, symmetric: bool = True) -> Cost:
    n, k = weight.shape
    groups = n * (1 if group_size is None else -(-k // group_size))
    written = n * (-(-k // 32) * 32 * bits // 8) + groups * (weight.element_size() + (not symmetric))
    return Cost(4 * n * k, nbytes(weight) + written)


add(
    OpSpec(
        name="quantize_packed",
        family="packed",
        op=_op,
        torch_op=_torch,
        samples=_samples,
        draw=_draw,
        bad_inputs=_bad_inputs,
        cost=_cost,
        kernels=("quantize_packed",),
        gradcheck=False,
    )
)
