"""OpSpecs of the norm family."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes

# ---- rms_norm ----


def _torch_rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    if residual is None:
        return F.rms_norm(input, list(normalized_shape), weight, eps)
    total = input + residual
    return F.rms_norm(total, list(normalized_shape), weight, eps), total


def _rms_norm_samples(make: Make) -> Iterator[Sample]:
    yield Sample("plain", (make.tensor(4, 64), (64,), make.tensor(64), 1e-5))
    yield Sample("no weight", (make.tensor(3, 5, 33), (33,), None, 1e-6))
    yield Sample("residual", (make.tensor(5, 40), (40,), make.tensor(40), 1e-5), {"residual": make.tensor(5, 40)})
    yield Sample("two dims", (make.tensor(3, 4, 6), (4, 6), make.tensor(4, 6), 1e-5))
    # A large eps: with a small one the gradient of a single element is a difference of equal numbers.
    yield Sample("one element", (make.tensor(1, 1), (1,), make.tensor(1), 0.5))
    yield Sample("no leading dims", (make.tensor(17), (17,), make.tensor(17), 1e-5))
    yield Sample("more rows than partials", (make.tensor(131, 7), (7,), make.tensor(7), 1e-5))
    yield Sample("wide", (make.tensor(2, 1037), (1037,), make.tensor(1037), 1e-5))
    yield Sample("large values", (make.tensor(3, 31, low=-100, high=100), (31,), make.tensor(31), 1e-5))
    yield Sample("no rows", (make.tensor(0, 8), (8,), make.tensor(8), 1e-5))


def _draw_rms_norm(make: Make, rng: random.Random) -> Sample:
    lead = [draw_size(rng, 9) for _ in range(rng.randint(0, 3))]
    shape = [2 + draw_size(rng) for _ in range(rng.randint(1, 2))]
    weight = make.tensor(*shape) if rng.random() < 0.7 else None
    kwargs = {"residual": make.tensor(*lead, *shape)} if rng.random() < 0.5 else {}
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


def _rms_norm_cost(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
) -> Cost:
    flops = 4 * input.numel() + (input.numel() if residual is not None else 0)
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
) -> Tensor | tuple[Tensor, Tensor]:
    if residual is None:
        return F.layer_norm(input, list(normalized_shape), weight, bias, eps)
    total = input + residual
    return F.layer_norm(total, list(normalized_shape), weight, bias, eps), total


def _layer_norm_samples(make: Make) -> Iterator[Sample]:
    yield Sample("plain", (make.tensor(4, 64), (64,), make.tensor(64), make.tensor(64)))
    yield Sample("no affine", (make.tensor(3, 5, 33), (33,)))
    yield Sample("weight only", (make.tensor(3, 20), (20,), make.tensor(20)))
    yield Sample("bias only", (make.tensor(3, 20), (20,), None, make.tensor(20), 1e-3))
    args = (make.tensor(5, 40), (40,), make.tensor(40), make.tensor(40))
    yield Sample("residual", args, {"residual": make.tensor(5, 40)})
    yield Sample("two dims", (make.tensor(3, 4, 6), (4, 6), make.tensor(4, 6), make.tensor(4, 6)))
    yield Sample("no leading dims", (make.tensor(17), (17,), make.tensor(17), make.tensor(17)))
    yield Sample("more rows than partials", (make.tensor(131, 7), (7,), make.tensor(7), make.tensor(7)))
    yield Sample("wide", (make.tensor(2, 1037), (1037,), make.tensor(1037), make.tensor(1037)))
    # A mean a thousand times the deviation: the difference of two large sums would have no digit left.
    yield Sample("large mean", (make.tensor(3, 100, low=999, high=1001), (100,), make.tensor(100), make.tensor(100)))
    yield Sample("no rows", (make.tensor(0, 8), (8,), make.tensor(8), make.tensor(8)))


def _draw_layer_norm(make: Make, rng: random.Random) -> Sample:
    lead = [draw_size(rng, 9) for _ in range(rng.randint(0, 3))]
    # A handful of elements can be almost equal, which no arithmetic survives; torch's own error is then luck.
    shape = [5 + draw_size(rng) for _ in range(rng.randint(1, 2))]
    weight = make.tensor(*shape) if rng.random() < 0.7 else None
    bias = make.tensor(*shape) if rng.random() < 0.7 else None
    kwargs = {"residual": make.tensor(*lead, *shape)} if rng.random() < 0.5 else {}
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


def _layer_norm_cost(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
) -> Cost:
    flops = 7 * input.numel() + (input.numel() if residual is not None else 0)
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
