"""OpSpecs of the gated family."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._check import ACTIVATIONS
from warpwright.nn._activation import TORCH_ACTIVATIONS
from warpwright.testing.spec import BadInput, Cost, Make, OpSpec, Sample, add, draw_size, nbytes

# ---- linear_glu, linear_swiglu, linear_geglu ----


def _torch_glu(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    *,
    activation: str | None = "sigmoid",
) -> Tensor:
    gate = TORCH_ACTIVATIONS[activation](F.linear(input, gate_weight, gate_bias))
    return gate * F.linear(input, up_weight, up_bias)


def _torch_swiglu(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
) -> Tensor:
    return F.silu(F.linear(input, gate_weight, gate_bias)) * F.linear(input, up_weight, up_bias)


def _torch_geglu(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    *,
    approximate: str = "none",
) -> Tensor:
    gate = F.gelu(F.linear(input, gate_weight, gate_bias), approximate=approximate)
    return gate * F.linear(input, up_weight, up_bias)


def _projections(make: Make, rows: int, hidden: int, features: int, biases: bool = True) -> tuple[Tensor | None, ...]:
    """(input, gate_weight, up_weight, gate_bias, up_bias)."""
    t = make.tensor
    tensors = t(rows, features), t(hidden, features), t(hidden, features)
    return (*tensors, t(hidden), t(hidden)) if biases else (*tensors, None, None)


def _halves(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both as leaves that lie in one packed tensor."""
    gate, up = weight.detach().chunk(2)
    return gate.requires_grad_(), up.requires_grad_()


def _glu_samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    yield Sample("biases", _projections(make, 5, 7, 12))
    yield Sample("no biases", _projections(make, 5, 7, 12, biases=False))
    for activation in ACTIVATIONS:
        yield Sample(activation, _projections(make, 3, 5, 6), {"activation": activation})
    yield Sample("one bias", (t(4, 6), t(9, 6), t(9, 6), None, t(9)), {"activation": "relu"})
    yield Sample("frozen up", (t(4, 6), t(9, 6), t(9, 6, grad=False), t(9)), {"activation": "silu"})
    yield Sample("frozen gate", (t(4, 6), t(9, 6, grad=False), t(9, 6), None, t(9)))
    yield Sample("frozen input", (t(4, 6, grad=False), t(9, 6), t(9, 6)), {"activation": "gelu"})
    yield Sample("biases alone", (t(4, 6, grad=False), *_frozen(t(9, 6), t(9, 6)), t(9), t(9)))
    yield Sample("halves of one weight", (t(5, 12), *_halves(t(14, 12))), {"activation": "silu"})
    yield Sample("three dims", (t(2, 3, 4), t(5, 4), t(5, 4), t(5)), {"activation": "silu"})
    yield Sample("one dim", (t(9), t(4, 9), t(4, 9)))
    # Past one tile in every direction.
    yield Sample("tiles", _projections(make, 67, 35, 17))
    # Lines of whole 16-byte chunks, which the tensor-core kernels take: past a tile in every direction, more tiles than
    # run at once, more steps than they have stages, and each operand lying either way.
    yield Sample("chunks", _projections(make, 136, 72, 40), {"activation": "silu"})
    yield Sample("chunks, many tiles", _projections(make, 136, 136, 72, biases=False), {"activation": "gelu"})
    yield Sample("chunks, halves of one weight", (t(24, 264), *_halves(t(48, 264))))
    transposed = t(40, 24).t(), t(40, 16).t(), t(40, 16).t()
    yield Sample("chunks, transposed", transposed, {"activation": "tanh"})
    yield Sample("chunks, input transposed", (t(40, 24).t(), t(16, 40), t(16, 40)))
    yield Sample("chunks, weights transposed", (t(24, 40), t(40, 16).t(), t(40, 16).t()))
    yield Sample("chunks, one weight transposed", (t(24, 40), t(40, 16).t(), t(16, 40)))
    yield Sample("no rows", _projections(make, 0, 3, 4))
    yield Sample("no columns", _projections(make, 3, 0, 4))
    yield Sample("no inner", _projections(make, 3, 4, 0))


def _frozen(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.detach() for t in tensors)


def _few_samples(make: Make, kwargs: dict[str, Any]) -> Iterator[Sample]:
    """What linear_glu's samples have not shown: the activation with and without biases."""
    yield Sample("biases", _projections(make, 5, 7, 12), kwargs)
    yield Sample("no biases", _projections(make, 3, 4, 5, biases=False), kwargs)
    yield Sample("chunks", _projections(make, 24, 16, 40), kwargs)


def _swiglu_samples(make: Make) -> Iterator[Sample]:
    yield from _few_samples(make, {})


def _geglu_samples(make: Make) -> Iterator[Sample]:
    yield from _few_samples(make, {})
    yield Sample("tanh", _projections(make, 5, 7, 12), {"approximate": "tanh"})


def _draw_projections(make: Make, rng: random.Random) -> tuple[str, tuple[Tensor | None, ...]]:
    lead = [draw_size(rng, 40)] if rng.random() < 0.7 else [draw_size(rng, 5), draw_size(rng, 9)]
    n, k = draw_size(rng), draw_size(rng)
    weights = (make.tensor(n, k), make.tensor(n, k)) if rng.random() < 0.7 else _halves(make.tensor(2 * n, k))
    biases = (make.tensor(n) if rng.random() < 0.6 else None for _ in range(2))
    return f"{lead} x {k} -> {n}", (make.tensor(*lead, k), *weights, *biases)


def _draw_glu(make: Make, rng: random.Random) -> Sample:
    name, tensors = _draw_projections(make, rng)
    activation = rng.choice([None, *ACTIVATIONS])
    return Sample(f"{name} {activation}", tensors, {"activation": activation})


def _draw_swiglu(make: Make, rng: random.Random) -> Sample:
    return Sample(*_draw_projections(make, rng))


def _draw_geglu(make: Make, rng: random.Random) -> Sample:
    name, tensors = _draw_projections(make, rng)
    approximate = rng.choice(["none", "tanh"])
    return Sample(f"{name} {approximate}", tensors, {"approximate": approximate})


def _glu_bad_inputs(make: Make) -> Iterator[BadInput]:
    t = make.tensor
    x, w = t(4, 8), t(6, 8)
    yield BadInput("features", (t(4, 7), w, w), "gate_weight has 8 input features, input has 7")
    yield BadInput("scalar input", (t(), w, w), "input must have at least 1 dimension, got 0")
    yield BadInput("weight rank", (x, t(8), t(8)), "gate_weight must have 2 dimensions, got 1")
    message = r"up_weight must have the shape of gate_weight \(6, 8\), got \(5, 8\)"
    yield BadInput("up's shape", (x, w, t(5, 8)), message)
    yield BadInput("up's dtype", (x, w, w.detach().double()), "up_weight must have the dtype of gate_weight")
    yield BadInput("input dtype", (x.detach().long(), w, w), "input must be float32, .* got torch.int64")
    yield BadInput("gate_bias", (x, w, w, t(5)), r"gate_bias must have shape \(6,\), got \(5,\)")
    yield BadInput("up_bias", (x, w, w, None, t(6, 1)), r"up_bias must have shape \(6,\), got \(6, 1\)")


def _only_glu_bad_inputs(make: Make) -> Iterator[BadInput]:
    yield from _glu_bad_inputs(make)
    args = (make.tensor(4, 8), make.tensor(6, 8), make.tensor(6, 8))
    yield BadInput("activation", args, "activation must be one of none, .*got 'mish'", {"activation": "mish"})


def _geglu_bad_inputs(make: Make) -> Iterator[BadInput]:
    yield from _glu_bad_inputs(make)
    args = (make.tensor(4, 8), make.tensor(6, 8), make.tensor(6, 8))
    yield BadInput("approximate", args, "approximate must be none or tanh, got 'erf'", {"approximate": "erf"})


def _glu_cost(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    **_: Any,
) -> Cost:
    rows, (n, k) = input.shape[:-1].numel(), gate_weight.shape
    read = nbytes(input, gate_weight, up_weight, gate_bias, up_bias)
    return Cost(4 * rows * n * k, read + rows * n * input.element_size())


def _add_glu(
    name: str,
    torch_op: Callable[..., Tensor],
    samples: Callable[[Make], Iterator[Sample]],
    draw: Callable[[Make, random.Random], Sample],
    bad_inputs: Callable[[Make], Iterator[BadInput]],
) -> None:
    kernels = ("linear_glu", "linear_glu_backward")
    add(OpSpec(name, "gated", getattr(ops, name), torch_op, samples, draw, bad_inputs, _glu_cost, kernels))


_add_glu("linear_glu", _torch_glu, _glu_samples, _draw_glu, _only_glu_bad_inputs)
_add_glu("linear_swiglu", _torch_swiglu, _swiglu_samples, _draw_swiglu, _glu_bad_inputs)
_add_glu("linear_geglu", _torch_geglu, _geglu_samples, _draw_geglu, _geglu_bad_inputs)


# ---- mlp ----


def _torch_mlp(
    input: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    *,
    gate_weight: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    activation: str | None = "silu",
    residual: Tensor | None = None,
) -> Tensor:
    up, activate = F.linear(input, up_weight, up_bias), TORCH_ACTIVATIONS[activation]
    hidden = activate(up) if gate_weight is None else activate(F.linear(input, gate_weight, gate_bias)) * up
    output = F.linear(hidden, down_weight, down_bias)
    return output if residual is None else output + residual


def _mlp_samples(make: Make) -> Iterator[Sample]:
    t = make.tensor
    layers = t(4, 6), t(5, 6), t(3, 5)
    yield Sample("gated", layers, {"gate_weight": t(5, 6)})
    yield Sample("plain", layers, {"activation": "gelu"})
    biases = {"up_bias": t(5), "down_bias": t(3)}
    everything = {"gate_weight": t(5, 6), "gate_bias": t(5), **biases, "residual": t(4, 3)}
    yield Sample("gated, everything", layers, {**everything, "activation": "gelu_tanh"})
    yield Sample("plain, everything", layers, {**biases, "residual": t(4, 3)})
    yield Sample("plain relu", layers, {**biases, "activation": "relu"})
    yield Sample("no activation", layers, {"activation": None})
    yield Sample("frozen hidden", (*_frozen(*layers[:2]), layers[2]), {"gate_weight": t(5, 6, grad=False)})
    yield Sample("frozen hidden, relu", (*_frozen(*layers[:2]), layers[2]), {"activation": "relu"})
    yield Sample("frozen down", (layers[0], layers[1], *_frozen(layers[2])), {"gate_weight": t(5, 6)})
    yield Sample("frozen weights", _frozen(*layers), {"residual": t(4, 3), "down_bias": t(3)})
    yield Sample("residual alone", _frozen(*layers), {"residual": t(4, 3)})
    gate, up = _halves(t(10, 4))
    yield Sample("three dims", (t(2, 3, 4), up, t(7, 5)), {"gate_weight": gate, "residual": t(2, 3, 7)})
    yield Sample("one dim", (t(6), t(5, 6), t(3, 5)), {"gate_weight": t(5, 6)})
    yield Sample("chunks", (t(24, 40), t(16, 40), t(8, 16)), {"gate_weight": t(16, 40), "residual": t(24, 8)})
    yield Sample("no rows", (t(0, 4), t(3, 4), t(2, 3)), {"gate_weight": t(3, 4), "up_bias": t(3)})
    yield Sample("no hidden", (t(3, 4), t(0, 4), t(2, 0)), {"gate_weight": t(0, 4), "down_bias": t(2)})


def _draw_mlp(make: Make, rng: random.Random) -> Sample:
    rows, features, hidden, outputs = draw_size(rng, 40), draw_size(rng, 40), draw_size(rng, 40), draw_size(rng, 40)
    kwargs: dict[str, Any] = {"activation": rng.choice([None, *ACTIVATIONS])}
    shapes = {"up_bias": (hidden,), "down_bias": (outputs,), "residual": (rows, outputs)}
    if rng.random() < 0.6:
        kwargs["gate_weight"] = make.tensor(hidden, features)
        shapes["gate_bias"] = (hidden,)
    kwargs |= {name: make.tensor(*shape) for name, shape in shapes.items() if rng.random() < 0.5}
    args = make.tensor(rows, features), make.tensor(hidden, features), make.tensor(outputs, hidden)
    return Sample(f"{rows} x {features} -> {hidden} -> {outputs} {sorted(kwargs)}", args, kwargs)


def _mlp_bad_inputs(make: Make) -> Iterator[BadInput]:
    t = make.tensor
    x, up, down = t(4, 8), t(6, 8), t(3, 6)
    yield BadInput("features", (t(4, 7), up, down), "up_weight has 8 input features, input has 7")
    message = r"gate_weight must have the shape of up_weight \(6, 8\), got \(5, 8\)"
    yield BadInput("gate's shape", (x, up, down), message, {"gate_weight": t(5, 8)})
    yield BadInput("down's rank", (x, up, t(6)), "down_weight must have 2 dimensions, got 1")
    message = "down_weight has 5 input features, up_weight has 6 output features"
    yield BadInput("down's features", (x, up, t(3, 5)), message)
    yield BadInput("down's dtype", (x, up, down.detach().double()), "down_weight must have the dtype of input")
    yield BadInput("up_bias", (x, up, down), r"up_bias must have shape \(6,\), got \(5,\)", {"up_bias": t(5)})
    yield BadInput("down_bias", (x, up, down), r"down_bias must have shape \(3,\), got \(6,\)", {"down_bias": t(6)})
    yield BadInput("no gate", (x, up, down), "gate_bias must come with a gate_weight", {"gate_bias": t(6)})
    gated = {"gate_weight": t(6, 8), "gate_bias": t(5)}
    yield BadInput("gate_bias", (x, up, down), r"gate_bias must have shape \(6,\), got \(5,\)", gated)
    message = r"residual must have the shape of the output \(4, 3\), got \(4, 8\)"
    yield BadInput("residual", (x, up, down), message, {"residual": t(4, 8)})
    yield BadInput("activation", (x, up, down), "activation must be one of none, .*got 'mish'", {"activation": "mish"})


def _mlp_cost(
    input: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    *,
    gate_weight: Tensor | None = None,
    activation: str | None = "silu",
    **others: Tensor | None,
) -> Cost:
    """hidden need not leave the chip."""
    rows, weights = input.shape[:-1].numel(), (up_weight, down_weight, gate_weight)
    products = sum(w.numel() for w in weights if w is not None)
    written = rows * down_weight.shape[0] * input.element_size()
    return Cost(2 * rows * products, nbytes(input, *weights, *others.values()) + written)


add(
    OpSpec(
        name="mlp",
        family="gated",
        op=ops.mlp,
        torch_op=_torch_mlp,
        samples=_mlp_samples,
        draw=_draw_mlp,
        bad_inputs=_mlp_bad_inputs,
        cost=_mlp_cost,
        kernels=("mlp", "mlp_backward"),
    )
)
