"""OpSpecs of the sparse family. tests/test_sparse.py holds what is exact to the definition, bit by bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._check import ACTIVATIONS
from warpwright.nn._activation import TORCH_ACTIVATIONS
from warpwright.ops import Sparse24Weight
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes

#: The six ways to keep two of four, as metadata.
_PLACES = (0b0100, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110)


def draw_sparse24(make: Make, n: int, k: int, *, low: float = -1.0, high: float = 1.0) -> Sparse24Weight:
    """An (n, k) weight whose values are uniform in [low, high), kept at random places."""
    values = make.tensor(n, k // 2, low=low, high=high)
    places = torch.tensor(_PLACES, dtype=torch.uint8, device=make.device)[make.integers(n, k // 4, low=0, high=6)]
    first, second = F.pad(places, (0, k // 4 % 2)).unflatten(1, (-(-k // 8), 2)).unbind(2)
    return Sparse24Weight(values, first | second << 4)


# ---- prune_24 ----


def _torch_prune(weight: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's own semi-structured tensors need a GPU: by the rank of each element in its group."""
    n, k = weight.shape
    groups = weight.detach().reshape(n, k // 4, 4)
    size = torch.where(groups.isnan(), torch.inf, groups.abs())
    ahead = size[..., None, :] > size[..., None]
    ahead |= (size[..., None, :] == size[..., None]) & torch.ones(4, 4, device=weight.device).tril(-1).bool()
    kept = ahead.sum(-1) < 2
    places = torch.arange(4, device=weight.device).expand_as(kept)[kept].reshape(n, k // 2)
    bits = F.pad(places, (0, -(k // 2) % 4)).reshape(n, -(-k // 8), 4)
    metadata = (bits << torch.arange(0, 8, 2, device=weight.device)).sum(-1).to(torch.uint8)
    return groups[kept].reshape(places.shape), metadata


def _prune_samples(make: Make) -> Iterator[Sample]:
    yield Sample("bytes", (make.tensor(5, 24, grad=False),))
    yield Sample("half a byte", (make.tensor(3, 12, grad=False),))
    yield Sample("transposed", (make.tensor(16, 6, grad=False).t(),))
    yield Sample("longer than a block", (make.tensor(2, 2084, grad=False),))
    yield Sample("ties", (make.integers(9, 32, low=-2, high=3).to(make.dtype),))
    odd = make.tensor(3, 16, grad=False)
    odd[0, 4], odd[1, 8:11], odd[2] = torch.inf, -torch.inf, 0
    yield Sample("infinities and zeros", (odd,))
    yield Sample("no rows", (make.tensor(0, 8, grad=False),))
    yield Sample("no columns", (make.tensor(3, 0, grad=False),))


def _draw_prune(make: Make, rng: random.Random) -> Sample:
    n, k = draw_size(rng), 4 * draw_size(rng)
    return Sample(f"{n} x {k}", (make.tensor(n, k, grad=False),))


def _prune_bad_inputs(make: Make) -> Iterator[BadInput]:
    yield BadInput("dtype", (make.tensor(4, 8).long(),), "weight must be float32, .* got torch.int64")
    message = r"weight must have 2 dimensions and a multiple of 4 columns, got "
    yield BadInput("rank", (make.tensor(8),), message + r"\(8,\)")
    yield BadInput("columns", (make.tensor(4, 6),), message + r"\(4, 6\)")


def _prune_cost(weight: Tensor) -> Cost:
    """Each magnitude of a group is compared with each other one."""
    n, k = weight.shape
    return Cost(6 * n * (k // 4), nbytes(weight) + n * (k // 2) * weight.element_size() + n * -(-k // 8))


# ---- dense_from_sparse24 ----


def _torch_dense(weight: Sparse24Weight) -> Tensor:
    n, kept = weight.values.shape
    bits = torch.stack([weight.metadata >> shift & 3 for shift in (0, 2, 4, 6)], 2)
    places = bits.flatten(1)[:, :kept].long()
    columns = torch.arange(kept, device=places.device) // 2 * 4 + places
    return weight.values.new_zeros(n, 2 * kept).scatter(1, columns, weight.values)


def _dense_samples(make: Make) -> Iterator[Sample]:
    yield Sample("bytes", (draw_sparse24(make, 5, 24),))
    yield Sample("half a byte", (draw_sparse24(make, 3, 12),))
    yield Sample("longer than a block", (draw_sparse24(make, 2, 1036),))
    yield Sample("no rows", (draw_sparse24(make, 0, 8),))
    yield Sample("no columns", (draw_sparse24(make, 3, 0),))


def _draw_dense(make: Make, rng: random.Random) -> Sample:
    n, k = draw_size(rng), 4 * draw_size(rng)
    return Sample(f"{n} x {k}", (draw_sparse24(make, n, k),))


def _bad_weights(make: Make) -> Iterator[tuple[str, Any, str]]:
    """Name, an (n, k) = (6, 8) weight that is none, message."""
    values, metadata = draw_sparse24(make, 6, 8)
    yield "dense weight", make.tensor(6, 8), "weight must be a Sparse24Weight, got a Tensor; prune_24 makes one"
    yield "pair", (values, metadata), "weight must be a Sparse24Weight, got a tuple"
    message = "values must have 2 dimensions and an even number of columns, got "
    yield "values rank", Sparse24Weight(make.tensor(6), metadata), message + r"\(6,\)"
    yield "values columns", Sparse24Weight(make.tensor(6, 3), metadata), message + r"\(6, 3\)"
    yield "metadata dtype", Sparse24Weight(values, metadata.int()), "metadata must be torch.uint8, got torch.int32"
    wide = torch.cat((metadata, metadata), 1)
    yield "metadata shape", Sparse24Weight(values, wide), r"metadata must have shape \(6, 1\), got \(6, 2\)"
    yield "metadata rows", Sparse24Weight(values, metadata[:5]), r"metadata must have shape \(6, 1\), got \(5, 1\)"


def _dense_bad_inputs(make: Make) -> Iterator[BadInput]:
    for name, weight, message in _bad_weights(make):
        yield BadInput(name, (weight,), message)
    values, metadata = draw_sparse24(make, 6, 8)
    message = "values must be float32, .* got torch.int64"
    yield BadInput("values dtype", (Sparse24Weight(values.long(), metadata),), message)


def _dense_cost(weight: Sparse24Weight) -> Cost:
    """Nothing is computed; a choice for each element."""
    return Cost(2 * weight.values.numel(), nbytes(*weight) + 2 * nbytes(weight.values))


# ---- linear_sparse24 ----


def _torch_linear(
    input: Tensor,
    weight: Sparse24Weight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    product = F.linear(input, _torch_dense(weight), bias)
    return TORCH_ACTIVATIONS[activation](product if residual is None else product + residual)


def _linear_samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    x, w, b = t(5, 12), draw_sparse24(make, 7, 12), t(7)
    yield Sample("bias", (x, w, b))
    yield Sample("no bias", (x, w))
    yield Sample("relu", (x, w, b), {"activation": "relu"})
    yield Sample("gelu", (x, w, b), {"activation": "gelu"})
    yield Sample("residual", (x, w, b), {"residual": t(5, 7)})
    yield Sample("residual and silu", (x, w, None), {"residual": t(5, 7), "activation": "silu"})
    yield Sample("three dims", (t(2, 3, 4), draw_sparse24(make, 5, 4), t(5)), {"activation": "tanh"})
    yield Sample("one dim", (t(8), draw_sparse24(make, 4, 8), t(4)))
    # Past one tile in every direction, and more rows than are multiplied with the weight as it lies.
    tiles = (t(67, 68), draw_sparse24(make, 66, 68), t(66))
    yield Sample("tiles", tiles)
    yield Sample("tiles, residual and gelu", tiles, {"residual": t(67, 66), "activation": "gelu"})
    yield Sample("a long sum", (t(5, 1100), draw_sparse24(make, 3, 1100), t(3)))
    # What the sparse tensor-core kernels take: past a tile, past the tiles that run at once, and more steps than they
    # have stages.
    chunks = (t(136, 128), draw_sparse24(make, 144, 128), t(144))
    yield Sample("chunks", chunks, {"residual": t(136, 144), "activation": "silu"})
    many = (t(264, 64), draw_sparse24(make, 144, 64))
    yield Sample("chunks, many tiles", many, {"activation": "gelu"})
    yield Sample("chunks, long sum", (t(24, 320), draw_sparse24(make, 16, 320)))
    yield Sample("chunks, input transposed", (t(64, 48).t(), draw_sparse24(make, 32, 64)), {"activation": "relu"})
    yield Sample("no rows", (t(0, 4), draw_sparse24(make, 3, 4), t(3)), {"activation": "gelu"})
    yield Sample("no columns", (t(3, 4), draw_sparse24(make, 0, 4), t(0)))
    yield Sample("no inner", (t(3, 0), draw_sparse24(make, 4, 0), t(4)), {"residual": t(3, 4)})


def _draw_linear(make: Make, rng: random.Random) -> Sample:
    lead = [draw_size(rng, 40)] if rng.random() < 0.7 else [draw_size(rng, 5), draw_size(rng, 9)]
    n, k = draw_size(rng), rng.choice([4 * draw_size(rng, 17), 64 * rng.randint(1, 3)])
    kwargs: dict[str, object] = {"activation": rng.choice([None, *ACTIVATIONS])}
    if rng.random() < 0.4:
        kwargs["residual"] = make.tensor(*lead, n)
    bias = make.tensor(n) if rng.random() < 0.7 else None
    args = (make.tensor(*lead, k), draw_sparse24(make, n, k), bias)
    return Sample(f"{lead} x {k} -> {n} {kwargs['activation']}", args, kwargs)


def _linear_bad_inputs(make: Make) -> Iterator[BadInput]:
    x, w, b = make.tensor(4, 8), draw_sparse24(make, 6, 8), make.tensor(6)
    for name, weight, message in _bad_weights(make):
        yield BadInput(name, (x, weight, b), message)
    yield BadInput("features", (make.tensor(4, 12), w, b), "weight has 8 input features, input has 12")
    yield BadInput("scalar input", (make.tensor(), w, b), "input must have at least 1 dimension, got 0")
    yield BadInput("input dtype", (x.detach().long(), w, b), "input must be float32, .* got torch.int64")
    other = Sparse24Weight(w.values.detach().double(), w.metadata)
    yield BadInput("values dtype", (x, other, b), "values must have the dtype of input")
    yield BadInput("bias shape", (x, w, make.tensor(5)), r"bias must have shape \(6,\), got \(5,\)")
    message = "activation must be one of none, relu, .*got 'mish'"
    yield BadInput("activation", (x, w, b), message, {"activation": "mish"})
    message = r"residual must have the shape of the output \(4, 6\), got \(6,\)"
    yield BadInput("residual shape", (x, w, b), message, {"residual": make.tensor(6)})


def _linear_cost(
    input: Tensor,
    weight: Sparse24Weight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Cost:
    """Of the elements that are kept, half of what the dense product takes: the least that can be done. Peaks of sparse
    tensor cores count the products with zeros too; by this count they are those of dense ones."""
    rows, (n, kept) = input.shape[:-1].numel(), weight.values.shape
    moved = nbytes(input, weight.values, weight.metadata, bias, residual) + rows * n * input.element_size()
    return Cost(2 * rows * n * kept, moved)


add(
    OpSpec(
        name="prune_24",
        family="sparse",
        op=ops.prune_24,
        torch_op=_torch_prune,
        samples=_prune_samples,
        draw=_draw_prune,
        bad_inputs=_prune_bad_inputs,
        cost=_prune_cost,
        kernels=("prune_24",),
        gradcheck=False,
    )
)
add(
    OpSpec(
        name="dense_from_sparse24",
        family="sparse",
        op=ops.dense_from_sparse24,
        torch_op=_torch_dense,
        samples=_dense_samples,
        draw=_draw_dense,
        bad_inputs=_dense_bad_inputs,
        cost=_dense_cost,
        kernels=("dense_from_sparse24", "dense_from_sparse24_backward"),
    )
)
add(
    OpSpec(
        name="linear_sparse24",
        family="sparse",
        op=ops.linear_sparse24,
        torch_op=_torch_linear,
        samples=_linear_samples,
        draw=_draw_linear,
        bad_inputs=_linear_bad_inputs,
        cost=_linear_cost,
        kernels=("linear_sparse24", "linear_sparse24_backward"),
    )
)
