"""OpSpecs of the norm family."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.reference._philox import dropout_threshold, random_words
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def torch_dropout(x: Tensor, cols: int, p: float, seed: Tensor | None, offset: int) -> Tensor:
    """torch.nn.functional.dropout with the words that every backend takes, a row of them for each `cols` elements."""
    if p == 0:
        return x
    assert seed is not None
    kept = random_words(seed, x.numel() // max(cols, 1), cols, offset) >= dropout_threshold(p)
    return x * kept.reshape(x.shape) * (1 / (1 - p) if p < 1 else 0.0)


def make_seed(make: Make) -> Tensor:
    return make.integers(1, low=-(2**62), high=2**62)


# ---- rms_norm ----


def _torch_rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    offset: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    shape = list(normalized_shape)
    total = torch_dropout(input, torch.Size(shape).numel(), dropout_p, seed, offset)
    weight = weight if weight is None or weight_offset == 0 else weight + weight_offset
    if residual is None:
        return F.rms_norm(total, shape, weight, eps)
    total = total + residual
    return F.rms_norm(total, shape, weight, eps), total


def _rms_norm_samples(make: Make) -> Iterator[Sample]:
    yield Sample("plain", (make.tensor(4, 64), (64,), make.tensor(64), 1e-5))
    yield Sample("no weight", (make.tensor(3, 5, 33), (33,), None, 1e-6))
    yield Sample("residual", (make.tensor(5, 40), (40,), make.tensor(40), 1e-5), {"residual": make.tensor(5, 40)})
    yield Sample("two dims", (make.tensor(3, 4, 6), (4, 6), make.tensor(4, 6), 1e-5))
    args = (make.tensor(3, 16), (16,), make.tensor(16), 1e-5)
    yield Sample("weight offset", args, {"weight_offset": 1.0})
    dropout = {"dropout_p": 0.5, "seed": make_seed(make), "offset": 3}
    yield Sample("dropout", (make.tensor(4, 24), (24,), make.tensor(24), 1e-5), dropout)
    args = (make.tensor(3, 37), (37,), make.tensor(37), 1e-5)
    yield Sample(
        "dropout and residual", args, {"residual": make.tensor(3, 37), "dropout_p": 0.3, "seed": make_seed(make)}
    )
    # A large eps: with a small one the gradient of a single element is a difference of equal numbers.
    yield Sample("one element", (make.tensor(1, 1), (1,), make.tensor(1), 0.5))
    yield Sample("no leading dims", (make.tensor(17), (17,), make.tensor(17), 1e-5))
    yield Sample("more rows than partials", (make.tensor(259, 7), (7,), make.tensor(7), 1e-5))
    # A warp takes a row, a block, or on Hopper a cluster; without clusters the last two are wider than what is held.
    for cols in (136, 264, 1037, 4113, 8208):
        yield Sample(f"{cols} columns", (make.tensor(2, cols), (cols,), make.tensor(cols), 1e-5))
    yield Sample("large values", (make.tensor(3, 31, low=-100, high=100), (31,), make.tensor(31), 1e-5))
    yield Sample("no rows", (make.tensor(0, 8), (8,), make.tensor(8), 1e-5))


def _draw_rms_norm(make: Make, rng: random.Random) -> Sample:
    lead = [draw_size(rng, 9) for _ in range(rng.randint(0, 3))]
    shape = [2 + draw_size(rng) for _ in range(rng.randint(1, 2))]
    weight = make.tensor(*shape) if rng.random() < 0.7 else None
    kwargs: dict[str, Any] = {"residual": make.tensor(*lead, *shape)} if rng.random() < 0.5 else {}
    if rng.random() < 0.3:
        kwargs |= {"dropout_p": rng.choice([0.1, 0.5]), "seed": make_seed(make), "offset": rng.randint(0, 5)}
    if weight is not None and rng.random() < 0.3:
        kwargs["weight_offset"] = 1.0
    return Sample(f"{lead} x {shape}", (make.tensor(*lead, *shape), tuple(shape), weight, 1e-5), kwargs)


def _rms_norm_bad_inputs(make: Make) -> Iterator[BadInput]:
    x, w = make.tensor(4, 8), make.tensor(8)
    yield BadInput("wrong normalized_shape", (x, (7,), w), r"normalized_shape \(7,\) must be the last dimensions")
    yield BadInput("empty normalized_shape", (x, (), None), r"normalized_shape \(\) must be the last dimensions")
    yield BadInput("weight shape", (x, (8,), make.tensor(7)), r"weight must have shape \(8,\), got \(7,\)")
    yield BadInput("weight dtype", (x, (8,), w.detach().double()), r"weight must have the dtype of input")
    yield BadInput("input dtype", (x.detach().long(), (8,), None, 1e-5), r"input must be float32, .* got torch.int64")
    bad = make.tensor(4, 9)
    yield BadInput("residual shape", (x, (8,), w), r"residual must have the shape of input \(4, 8\)", {"residual": bad})
    yield BadInput("offset alone", (x, (8,)), "weight must be given with weight_offset", {"weight_offset": 1.0})
    yield BadInput("dropout_p", (x, (8,)), "dropout_p must be between 0 and 1, got 1.5", {"dropout_p": 1.5})
    seed = {"dropout_p": 0.5, "seed": make.tensor(1, grad=False)}
    yield BadInput("seed dtype", (x, (8,)), "seed must be one torch.int64, got 1 of torch.float32", seed)
    seed = {"dropout_p": 0.5, "seed": make.integers(2, low=0, high=9)}
    yield BadInput("seed size", (x, (8,)), "seed must be one torch.int64, got 2 of torch.int64", seed)


def _rms_norm_cost(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    offset: int = 0,
) -> Cost:
    flops = (4 + (residual is not None) + (dropout_p > 0)) * input.numel()
    outputs = nbytes(input) * (1 if residual is None else 2)
    return Cost(flops, nbytes(input, weight, residual) + outputs)


add(
    OpSpec(
        name="rms_norm",
        family="norm",
        op=ops.rms_norm,
        torch_op=_torch_rms_norm,
        samples=_rms_norm_samples,
        draw=_draw_rms_norm,
        bad_inputs=_rms_norm_bad_inputs,
        cost=_rms_norm_cost,
        kernels=("rms_norm", "rms_norm_backward"),
    )
)

# ---- layer_norm ----


def _torch_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    offset: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    shape = list(normalized_shape)
    total = torch_dropout(input, torch.Size(shape).numel(), dropout_p, seed, offset)
    weight = weight if weight is None or weight_offset == 0 else weight + weight_offset
    if residual is None:
        return F.layer_norm(total, shape, weight, bias, eps)
    total = total + residual
    return F.layer_norm(total, shape, weight, bias, eps), total


def _layer_norm_samples(make: Make) -> Iterator[Sample]:
    yield Sample("plain", (make.tensor(4, 64), (64,), make.tensor(64), make.tensor(64)))
    yield Sample("no affine", (make.tensor(3, 5, 33), (33,)))
    yield Sample("weight only", (make.tensor(3, 20), (20,), make.tensor(20)))
    yield Sample("bias only", (make.tensor(3, 20), (20,), None, make.tensor(20), 1e-3))
    args = (make.tensor(5, 40), (40,), make.tensor(40), make.tensor(40))
    yield Sample("residual", args, {"residual": make.tensor(5, 40)})
    yield Sample("two dims", (make.tensor(3, 4, 6), (4, 6), make.tensor(4, 6), make.tensor(4, 6)))
    args = (make.tensor(3, 16), (16,), make.tensor(16), make.tensor(16))
    yield Sample("weight offset", args, {"weight_offset": 1.0})
    residual = {"residual": make.tensor(4, 5, 8), "dropout_p": 0.25, "seed": make_seed(make), "offset": 1}
    affine = (make.tensor(5, 8), make.tensor(5, 8))
    yield Sample("dropout and residual", (make.tensor(4, 5, 8), (5, 8), *affine), residual)
    yield Sample("everything dropped", (make.tensor(2, 8), (8,)), {"dropout_p": 1.0, "seed": make_seed(make)})
    yield Sample("no leading dims", (make.tensor(17), (17,), make.tensor(17), make.tensor(17)))
    yield Sample("more rows than partials", (make.tensor(259, 7), (7,), make.tensor(7), make.tensor(7)))
    for cols in (136, 264, 1037, 4113, 8208):  # As for rms_norm.
        yield Sample(f"{cols} columns", (make.tensor(2, cols), (cols,), make.tensor(cols), make.tensor(cols)))
    # A mean a thousand times the deviation: the difference of two large sums would have no digit left.
    yield Sample("large mean", (make.tensor(3, 100, low=999, high=1001), (100,), make.tensor(100), make.tensor(100)))
    yield Sample("no rows", (make.tensor(0, 8), (8,), make.tensor(8), make.tensor(8)))


def _draw_layer_norm(make: Make, rng: random.Random) -> Sample:
    lead = [draw_size(rng, 9) for _ in range(rng.randint(0, 3))]
    # A handful of elements can be almost equal, which no arithmetic survives; torch's own error is then luck.
    shape = [5 + draw_size(rng) for _ in range(rng.randint(1, 2))]
    weight = make.tensor(*shape) if rng.random() < 0.7 else None
    bias = make.tensor(*shape) if rng.random() < 0.7 else None
    kwargs: dict[str, Any] = {"residual": make.tensor(*lead, *shape)} if rng.random() < 0.5 else {}
    if rng.random() < 0.3:
        kwargs |= {"dropout_p": rng.choice([0.1, 0.5]), "seed": make_seed(make), "offset": rng.randint(0, 5)}
    if weight is not None and rng.random() < 0.3:
        kwargs["weight_offset"] = 1.0
    return Sample(f"{lead} x {shape}", (make.tensor(*lead, *shape), tuple(shape), weight, bias), kwargs)


def _layer_norm_bad_inputs(make: Make) -> Iterator[BadInput]:
    x, w = make.tensor(4, 8), make.tensor(8)
    yield BadInput("wrong normalized_shape", (x, (7,), w), r"normalized_shape \(7,\) must be the last dimensions")
    yield BadInput("weight shape", (x, (8,), make.tensor(7)), r"weight must have shape \(8,\), got \(7,\)")
    yield BadInput("bias shape", (x, (8,), w, make.tensor(2, 4)), r"bias must have shape \(8,\), got \(2, 4\)")
    yield BadInput("bias dtype", (x, (8,), w, w.detach().double()), "bias must have the dtype of input")
    yield BadInput("input dtype", (x.detach().int(), (8,)), r"input must be float32, .* got torch.int32")
    bad = make.tensor(4, 9)
    yield BadInput("residual shape", (x, (8,), w), r"residual must have the shape of input \(4, 8\)", {"residual": bad})
    yield BadInput("offset alone", (x, (8,)), "weight must be given with weight_offset", {"weight_offset": 1.0})
    yield BadInput("dropout_p", (x, (8,)), "dropout_p must be between 0 and 1, got 1.5", {"dropout_p": 1.5})
    seed = {"dropout_p": 0.5, "seed": make.tensor(1, grad=False)}
    yield BadInput("seed dtype", (x, (8,)), "seed must be one torch.int64, got 1 of torch.float32", seed)
    seed = {"dropout_p": 0.5, "seed": make.integers(2, low=0, high=9)}
    yield BadInput("seed size", (x, (8,)), "seed must be one torch.int64, got 2 of torch.int64", seed)


def _layer_norm_cost(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    offset: int = 0,
) -> Cost:
    flops = (7 + (residual is not None) + (dropout_p > 0)) * input.numel()
    outputs = nbytes(input) * (1 if residual is None else 2)
    return Cost(flops, nbytes(input, weight, bias, residual) + outputs)


add(
    OpSpec(
        name="layer_norm",
        family="norm",
        op=ops.layer_norm,
        torch_op=_torch_layer_norm,
        samples=_layer_norm_samples,
        draw=_draw_layer_norm,
        bad_inputs=_layer_norm_bad_inputs,
        cost=_layer_norm_cost,
        kernels=("layer_norm", "layer_norm_backward"),
    )
)

# ---- l2_normalize ----


def _torch_l2_normalize(input: Tensor, dim: int = -1, eps: float = 1e-12) -> Tensor:
    return F.normalize(input, dim=dim, eps=eps)


def _l2_normalize_samples(make: Make) -> Iterator[Sample]:
    yield Sample("plain", (make.tensor(4, 64),))
    yield Sample("odd width", (make.tensor(3, 5, 33),))
    yield Sample("first dimension", (make.tensor(6, 3, 4), 0, 1e-3))
    yield Sample("middle dimension", (make.tensor(2, 9, 5), 1, 1e-3))
    # Rows that are shorter than eps; 16 bits hold this one.
    short = torch.cat((make.tensor(2, 8), 1e-3 * make.tensor(2, 8), 0 * make.tensor(1, 8)))
    yield Sample("short rows", (short.detach().requires_grad_(), -1, 0.0625))
    yield Sample("wide", (make.tensor(2, 1037),))
    yield Sample("one dimension", (make.tensor(17),))
    yield Sample("no rows", (make.tensor(0, 8),))


def _draw_l2_normalize(make: Make, rng: random.Random) -> Sample:
    shape = [draw_size(rng, 9) for _ in range(rng.randint(0, 2))] + [2 + draw_size(rng)]
    dim = rng.randrange(-len(shape), len(shape))
    if shape[dim] < 2:
        shape[dim] += 2  # A single element's gradient is a difference of equal numbers.
    return Sample(f"{shape} along {dim}", (make.tensor(*shape), dim, 1e-3))


def _l2_normalize_bad_inputs(make: Make) -> Iterator[BadInput]:
    x = make.tensor(4, 8)
    yield BadInput("dim", (x, 2), "dim must be one of input's 2, got 2")
    yield BadInput("no dimension", (x.detach().sum(),), "dim must be one of input's 0, got -1")
    yield BadInput("input dtype", (x.detach().long(),), r"input must be float32, .* got torch.int64")


def _l2_normalize_cost(input: Tensor, dim: int = -1, eps: float = 1e-12) -> Cost:
    return Cost(3 * input.numel(), 2 * nbytes(input))


add(
    OpSpec(
        name="l2_normalize",
        family="norm",
        op=ops.l2_normalize,
        torch_op=_torch_l2_normalize,
        samples=_l2_normalize_samples,
        draw=_draw_l2_normalize,
        bad_inputs=_l2_normalize_bad_inputs,
        cost=_l2_normalize_cost,
        kernels=("l2_normalize", "l2_normalize_backward"),
    )
)
