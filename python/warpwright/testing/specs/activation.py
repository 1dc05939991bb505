"""OpSpecs of the activation family."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes

# ---- swiglu ----


def _torch_swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    if up is None:
        gate, up = gate.chunk(2, -1)
    return F.silu(gate) * up


def _swiglu_samples(make: Make) -> Iterator[Sample]:
    yield Sample("plain", (make.tensor(4, 64, low=-4, high=4), make.tensor(4, 64)))
    yield Sample("halves of one tensor", (make.tensor(3, 5, 32, low=-4, high=4),))
    yield Sample("odd halves of one tensor", (make.tensor(5, 34, low=-4, high=4),))
    yield Sample("halves of a long row", (make.tensor(2, 8400, low=-4, high=4),))
    yield Sample("one long row", (make.tensor(4099, low=-4, high=4), make.tensor(4099)))
    yield Sample("large values", (make.tensor(3, 31, low=-120, high=120), make.tensor(3, 31, low=-10, high=10)))
    yield Sample("expanded, no gradient", (make.tensor(3, 24), make.tensor(1, 24, grad=False).expand(3, 24)))
    yield Sample("one element", (make.tensor(1), make.tensor(1)))
    yield Sample("empty", (make.tensor(0, 8), make.tensor(0, 8)))
    yield Sample("empty halves", (make.tensor(3, 0),))


def _draw_swiglu(make: Make, rng: random.Random) -> Sample:
    shape = [draw_size(rng, 9) for _ in range(rng.randint(0, 3))] + [draw_size(rng)]
    if rng.random() < 0.5:
        shape[-1] *= 2
        return Sample(f"{shape}", (make.tensor(*shape, low=-4, high=4),))
    return Sample(f"{shape} and {shape}", (make.tensor(*shape, low=-4, high=4), make.tensor(*shape)))


def _swiglu_bad_inputs(make: Make) -> Iterator[BadInput]:
    x = make.tensor(4, 8)
    yield BadInput("up shape", (x, make.tensor(4, 7)), r"up must have the shape of gate \(4, 8\), got \(4, 7\)")
    yield BadInput("up broadcast", (x, make.tensor(8)), r"up must have the shape of gate \(4, 8\), got \(8,\)")
    yield BadInput("up dtype", (x, x.detach().double()), r"up must have the dtype of gate")
    yield BadInput("gate dtype", (x.detach().long(), x), r"gate must be float32, .* got torch.int64")
    yield BadInput("no dimensions", (make.tensor(), make.tensor()), r"gate must have at least 1 dimension, got 0")
    yield BadInput("odd halves", (make.tensor(4, 7),), r"gate without up must have an even last dimension .*\(4, 7\)")
    yield BadInput("no dimensions to split", (make.tensor(),), r"gate must have at least 1 dimension, got 0")


def _swiglu_cost(gate: Tensor, up: Tensor | None = None) -> Cost:
    outputs = gate.numel() if up is not None else gate.numel() // 2
    return Cost(5 * outputs, nbytes(gate, up) + outputs * gate.element_size())


add(
    OpSpec(
        name="swiglu",
        family="activation",
        op=ops.swiglu,
        torch_op=_torch_swiglu,
        samples=_swiglu_samples,
        draw=_draw_swiglu,
        bad_inputs=_swiglu_bad_inputs,
        cost=_swiglu_cost,
        kernels=("swiglu", "swiglu_backward"),
    )
)
