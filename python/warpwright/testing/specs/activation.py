"""OpSpecs of the activation family."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes


def _special(make: Make) -> Tensor:
    """Not a number, infinities and zeros, among others."""
    values = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 0.5, -0.5, 3.0]
    return torch.tensor(values, dtype=make.dtype, device=make.device).requires_grad_()


# ---- gelu, silu, relu, relu_squared ----


def _torch_gelu(input: Tensor, approximate: str = "none", *, bias: Tensor | None = None) -> Tensor:
    return F.gelu(input if bias is None else input + bias, approximate=approximate)


def _torch_activation(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def torch_op(input: Tensor, *, bias: Tensor | None = None) -> Tensor:
        return function(input if bias is None else input + bias)

    return torch_op


def _activation_samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    yield Sample("plain", (t(4, 64, low=-4, high=4),))
    yield Sample("bias", (t(5, 40, low=-3, high=3),), {"bias": t(40)})
    yield Sample("odd width and a bias", (t(3, 5, 33, low=-3, high=3),), {"bias": t(33)})
    yield Sample("one long row", (t(4099, low=-4, high=4),))
    yield Sample("more rows than groups", (t(1030, 3),), {"bias": t(3)})
    yield Sample("large values", (t(3, 31, low=-120, high=120),))
    yield Sample("NaN, infinities and zeros", (_special(make),))
    yield Sample("a bias without a gradient", (t(4, 16),), {"bias": t(16, grad=False)})
    yield Sample("an input without a gradient", (t(9, 16, grad=False),), {"bias": t(16)})
    yield Sample("one column", (t(7, 1),), {"bias": t(1)})
    yield Sample("no dimensions", (t(),))
    yield Sample("no rows", (t(0, 8),), {"bias": t(8)})
    yield Sample("empty", (t(3, 0),))


def _gelu_samples(make: Make) -> Iterator[Sample]:
    first, *rest = _activation_samples(make)
    yield first
    yield Sample("tanh", (make.tensor(4, 64, low=-4, high=4), "tanh"), {"bias": make.tensor(64)})
    yield from rest
    yield Sample("tanh, large values", (make.tensor(3, 31, low=-120, high=120), "tanh"))
    yield Sample("tanh, NaN, infinities and zeros", (_special(make), "tanh"))


def _draw_activation(make: Make, rng: random.Random) -> Sample:
    shape = [draw_size(rng, 9) for _ in range(rng.randint(0, 3))] + [draw_size(rng)]
    kwargs = {"bias": make.tensor(shape[-1])} if rng.random() < 0.5 else {}
    return Sample(f"{shape}", (make.tensor(*shape, low=-4, high=4),), kwargs)


def _draw_gelu(make: Make, rng: random.Random) -> Sample:
    drawn = _draw_activation(make, rng)
    approximate = rng.choice(["none", "tanh"])
    return Sample(f"{drawn.name}, {approximate}", (*drawn.args, approximate), drawn.kwargs)


def _activation_bad_inputs(make: Make) -> Iterator[BadInput]:
    x, bias = make.tensor(4, 8), make.tensor(8)
    yield BadInput("input dtype", (x.detach().long(),), r"input must be float32, .* got torch.int64")
    shape = r"bias must have shape \(n,\) for input \(\.\.\., n\), got \(7,\) for \(4, 8\)"
    yield BadInput("bias shape", (x,), shape, {"bias": make.tensor(7)})
    yield BadInput("bias dtype", (x,), "bias must have the dtype of input", {"bias": bias.detach().double()})
    yield BadInput("a bias for a number", (make.tensor(),), r"got \(8,\) for \(\)", {"bias": bias})


def _gelu_bad_inputs(make: Make) -> Iterator[BadInput]:
    yield from _activation_bad_inputs(make)
    yield BadInput("approximate", (make.tensor(4, 8), "erf"), "approximate must be none or tanh, got 'erf'")


def _activation_cost(flops: int) -> Callable[..., Cost]:
    def cost(input: Tensor, *_: Any, bias: Tensor | None = None) -> Cost:
        each = flops + (bias is not None)
        return Cost(each * input.numel(), nbytes(input, bias) + nbytes(input))

    return cost


def _add_activation(name: str, torch_op: Callable[..., Tensor], flops: int, **replaced: Any) -> None:
    given: dict[str, Any] = {
        "samples": _activation_samples,
        "draw": _draw_activation,
        "bad_inputs": _activation_bad_inputs,
        **replaced,
    }
    add(
        OpSpec(
            name=name,
            family="activation",
            op=getattr(ops, name),
            torch_op=torch_op,
            cost=_activation_cost(flops),
            kernels=("activation", "activation_backward"),
            **given,
        )
    )


_add_activation("gelu", _torch_gelu, 5, samples=_gelu_samples, draw=_draw_gelu, bad_inputs=_gelu_bad_inputs)
_add_activation("silu", _torch_activation(F.silu), 4)
_add_activation("relu", _torch_activation(torch.relu), 1)
_add_activation("relu_squared", _torch_activation(lambda x: torch.relu(x).square()), 2)

# ---- swiglu, geglu, reglu ----


def _torch_gated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def torch_op(
        gate: Tensor,
        up: Tensor | None = None,
        *,
        gate_bias: Tensor | None = None,
        up_bias: Tensor | None = None,
    ) -> Tensor:
        if up is None:
            gate, up = gate.chunk(2, -1)
        gate = gate if gate_bias is None else gate + gate_bias
        return function(gate) * (up if up_bias is None else up + up_bias)

    return torch_op


def _torch_geglu(
    gate: Tensor,
    up: Tensor | None = None,
    *,
    approximate: str = "none",
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
) -> Tensor:
    gated = _torch_gated(functools.partial(F.gelu, approximate=approximate))
    return gated(gate, up, gate_bias=gate_bias, up_bias=up_bias)


def _gated_samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    yield Sample("plain", (t(4, 64, low=-4, high=4), t(4, 64)))
    yield Sample("halves of one tensor", (t(3, 5, 32, low=-4, high=4),))
    yield Sample("both biases", (t(5, 40, low=-4, high=4), t(5, 40)), {"gate_bias": t(40), "up_bias": t(40)})
    yield Sample("odd halves of one tensor", (t(5, 34, low=-4, high=4),), {"gate_bias": t(17)})
    yield Sample("more rows than groups", (t(1030, 3), t(1030, 3)), {"up_bias": t(3)})
    yield Sample("halves of a long row", (t(2, 8400, low=-4, high=4),))
    yield Sample("one long row", (t(4099, low=-4, high=4), t(4099)))
    yield Sample("large values", (t(3, 31, low=-120, high=120), t(3, 31, low=-10, high=10)))
    yield Sample("NaN, infinities and zeros", (_special(make), t(8)))
    yield Sample("expanded, no gradient", (t(3, 24), t(1, 24, grad=False).expand(3, 24)))
    yield Sample("one element", (t(1), t(1)))
    yield Sample("empty", (t(0, 8), t(0, 8)), {"gate_bias": t(8)})
    yield Sample("empty halves", (t(3, 0),))


def _geglu_samples(make: Make) -> Iterator[Sample]:
    first, *rest = _gated_samples(make)
    yield first
    args = (make.tensor(4, 64, low=-4, high=4), make.tensor(4, 64))
    yield Sample("tanh", args, {"approximate": "tanh", "gate_bias": make.tensor(64)})
    yield from rest


def _draw_gated(make: Make, rng: random.Random) -> Sample:
    shape = [draw_size(rng, 9) for _ in range(rng.randint(0, 3))] + [draw_size(rng)]
    names = [name for name in ("gate_bias", "up_bias") if rng.random() < 0.3]
    kwargs = {name: make.tensor(shape[-1]) for name in names}
    if rng.random() < 0.5:
        shape[-1] *= 2
        return Sample(f"{shape} {names}", (make.tensor(*shape, low=-4, high=4),), kwargs)
    return Sample(f"{shape} and {shape} {names}", (make.tensor(*shape, low=-4, high=4), make.tensor(*shape)), kwargs)


def _gated_bad_inputs(make: Make) -> Iterator[BadInput]:
    x = make.tensor(4, 8)
    yield BadInput("up shape", (x, make.tensor(4, 7)), r"up must have the shape of gate \(4, 8\), got \(4, 7\)")
    yield BadInput("up broadcast", (x, make.tensor(8)), r"up must have the shape of gate \(4, 8\), got \(8,\)")
    yield BadInput("up dtype", (x, x.detach().double()), r"up must have the dtype of gate")
    yield BadInput("gate dtype", (x.detach().long(), x), r"gate must be float32, .* got torch.int64")
    yield BadInput("no dimensions", (make.tensor(), make.tensor()), r"gate must have at least 1 dimension, got 0")
    yield BadInput("odd halves", (make.tensor(4, 7),), r"gate without up must have an even last dimension .*\(4, 7\)")
    yield BadInput("no dimensions to split", (make.tensor(),), r"gate must have at least 1 dimension, got 0")
    shape = r"up_bias must have shape \(n,\) for gate \(\.\.\., n\), got \(7,\) for \(4, 8\)"
    yield BadInput("bias shape", (x, x), shape, {"up_bias": make.tensor(7)})
    wrong = make.tensor(8).detach().double()
    yield BadInput("bias dtype", (x, x), "gate_bias must have the dtype of gate", {"gate_bias": wrong})


def _geglu_bad_inputs(make: Make) -> Iterator[BadInput]:
    yield from _gated_bad_inputs(make)
    x, message = make.tensor(4, 8), "approximate must be none or tanh, got 'erf'"
    yield BadInput("approximate", (x, x), message, {"approximate": "erf"})


def _gated_cost(flops: int) -> Callable[..., Cost]:
    def cost(
        gate: Tensor,
        up: Tensor | None = None,
        *,
        gate_bias: Tensor | None = None,
        up_bias: Tensor | None = None,
        approximate: str = "none",
    ) -> Cost:
        outputs = gate.numel() if up is not None else gate.numel() // 2
        # The polynomial of gelu's tanh costs three operations more.
        each = flops + 3 * (approximate == "tanh") + (gate_bias is not None) + (up_bias is not None)
        return Cost(each * outputs, nbytes(gate, up, gate_bias, up_bias) + outputs * gate.element_size())

    return cost


def _add_gated(name: str, function: Callable[..., Tensor], flops: int, **replaced: Any) -> None:
    given: dict[str, Any] = {
        "torch_op": _torch_gated(function),
        "samples": _gated_samples,
        "draw": _draw_gated,
        "bad_inputs": _gated_bad_inputs,
        "cost": _gated_cost(flops),
        **replaced,
    }
    add(OpSpec(name=name, family="activation", op=getattr(ops, name), kernels=("glu", "glu_backward"), **given))


_add_gated("swiglu", F.silu, 5)
_add_gated("geglu", F.gelu, 6, torch_op=_torch_geglu, samples=_geglu_samples, bad_inputs=_geglu_bad_inputs)
_add_gated("reglu", torch.relu, 2)

# ---- glu ----


def _glu_samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    yield Sample("plain", (t(4, 64, low=-4, high=4),))
    yield Sample("first dimension", (t(6, 5, 7, low=-4, high=4), 0))
    yield Sample("a dimension between", (t(2, 6, 9), 1))
    yield Sample("odd halves", (t(3, 34, low=-4, high=4), -1))
    yield Sample("large values", (t(3, 62, low=-120, high=120),))
    yield Sample("NaN, infinities and zeros", (_special(make),))
    yield Sample("two elements", (t(2), 0))
    yield Sample("empty", (t(0, 8), -1))


def _draw_glu(make: Make, rng: random.Random) -> Sample:
    shape = [draw_size(rng, 9) for _ in range(rng.randint(1, 4))]
    dim = rng.randrange(len(shape))
    shape[dim] *= 2
    return Sample(f"{shape}, {dim}", (make.tensor(*shape, low=-4, high=4), dim))


def _glu_bad_inputs(make: Make) -> Iterator[BadInput]:
    x = make.tensor(4, 7)
    yield BadInput("odd", (x,), r"input must have an even last dimension to split, got \(4, 7\)")
    yield BadInput("odd dimension", (x, 1), r"input must have an even dimension 1 to split, got \(4, 7\)")
    yield BadInput("dim", (x, 2), r"dim must be between -2 and 1 for input \(4, 7\), got 2")
    yield BadInput("no dimensions", (make.tensor(),), r"input must have at least 1 dimension, got 0")
    yield BadInput("dtype", (make.tensor(4, 8).detach().long(),), r"input must be float32, .* got torch.int64")


_add_gated(
    "glu",
    torch.sigmoid,
    5,
    torch_op=lambda input, dim=-1: F.glu(input, dim),
    samples=_glu_samples,
    draw=_draw_glu,
    bad_inputs=_glu_bad_inputs,
    cost=lambda input, dim=-1: Cost(5 * input.numel() // 2, nbytes(input) * 3 // 2),
)
