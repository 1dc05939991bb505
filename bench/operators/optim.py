"""Optimizer steps: all parameters of a model at once, with shapes from its public configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from warpwright._optim_rules import RULES, Rule, decode_moment, encode_moment
from warpwright.bench.case import Draw, operator
from warpwright.bench.operators._common import suffix
from warpwright.testing import Sample
from warpwright.testing.specs.optim import as_outputs

Shape = tuple[int, ...]

# ---- models ----


def resnet50_shapes(layers: int | None = None) -> list[Shape]:
    """ResNet-50, 25,557,032 parameters; `layers`: blocks of each stage."""

    def conv(channels: int, filters: int, kernel: int) -> list[Shape]:
        """A convolution without bias, and the batch norm after it."""
        return [(filters, channels, kernel, kernel), (filters,), (filters,)]

    shapes = conv(3, 64, 7)
    channels = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(min(blocks, layers or blocks)):
            shapes += conv(channels, width, 1) + conv(width, width, 3) + conv(width, 4 * width, 1)
            if block == 0:
                shapes += conv(channels, 4 * width, 1)
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]


def gpt2_small_shapes(layers: int | None = None) -> list[Shape]:
    """GPT-2 small, whose output layer is its token embedding, 124,439,808 parameters."""
    width, vocabulary, positions = 768, 50257, 1024

    def linear(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs, outputs), (outputs,)]

    norm: list[Shape] = [(width,), (width,)]
    attention = linear(width, 3 * width) + linear(width, width)
    block = norm + attention + norm + linear(width, 4 * width) + linear(4 * width, width)
    return [(vocabulary, width), (positions, width), *block * min(12, layers or 12), *norm]


def llama3_1b_shapes(layers: int | None = None) -> list[Shape]:
    """Llama 3.2 1B, whose output layer is its token embedding, 1,235,814,400 parameters."""
    width, vocabulary, inner, key_value = 2048, 128256, 8192, 8 * 64
    attention: list[Shape] = [(width, width), (key_value, width), (key_value, width), (width, width)]
    feed_forward: list[Shape] = [(inner, width), (inner, width), (width, inner)]
    block = [*attention, *feed_forward, (width,), (width,)]
    return [(vocabulary, width), *block * min(16, layers or 16), (width,)]


MODELS = {"resnet50": resnet50_shapes, "gpt2-small": gpt2_small_shapes, "llama3-1b": llama3_1b_shapes}

# ---- calls ----


def smaller(parameters: dict[str, Any]) -> dict[str, Any] | None:
    divide = 2 * parameters.get("divide", 1)
    return parameters | {"divide": divide} if divide <= 1 << 16 else None


def _written(rule: Rule) -> Callable[[Sample], list[Tensor]]:
    def written(sample: Sample) -> list[Tensor]:
        params, _, *moments, _ = sample.args
        states = as_outputs(moments, [sample.kwargs[name] for name in rule.scales if name in sample.kwargs])
        return [t for tensors in (params, *states, sample.kwargs.get("masters", ())) for t in tensors]

    return written


def _step(
    rule: Rule, draw: Draw, model: str, masters: bool, layers: int | None, divide: int, eight_bit: bool = False
) -> Sample:
    if divide < 1 or (layers is not None and layers < 1):
        raise RuntimeError(f"warpwright: bench: layers and divide must be at least 1, got {layers} and {divide}")
    shapes = [(max(1, first // divide), *rest) for first, *rest in MODELS[model](layers)]
    state = torch.float32 if masters or eight_bit or rule.name == "lamb_" else draw.dtype

    def each(low: float, high: float, dtype: torch.dtype) -> list[Tensor]:
        return [draw.tensor(*shape, low=low, high=high, grad=False, dtype=dtype) for shape in shapes]

    # Second moments stay off 0, where a step is the quotient of two roundings.
    copies = each(-1, 1, torch.float32 if masters else draw.dtype)
    params, grads = [copy.to(draw.dtype) for copy in copies] if masters else copies, each(-1, 1, draw.dtype)
    moments = [each(*bounds, state) for _, bounds in zip(rule.moments, ((-0.5, 0.5), (0.1, 0.5)), strict=False)]
    options: dict[str, Any] = {"masters": copies} if masters else {}
    if eight_bit:
        pairs = [[encode_moment(t, k == 0) for t in tensors] for k, tensors in enumerate(moments)]
        moments = [[codes for codes, _ in tensors] for tensors in pairs]
        options |= {name: [s for _, s in tensors] for name, tensors in zip(rule.scales, pairs, strict=True)}
    steps = [torch.full((), 3.0, device=draw.device) for _ in shapes]
    part = "" if divide == 1 else f" / {divide}"
    name = suffix(masters=masters, **{"8-bit moments": eight_bit})
    return Sample(f"{model}{part}, {len(shapes)} tensors{name}", (params, grads, *moments, steps), options)


# ---- PyTorch's best ----

#: (values, gradients, moments, steps), all of one dtype, updated in place.
Update = Callable[[list[Tensor], list[Tensor], list[list[Tensor]], list[Tensor]], None]


def _in_place(rule: Rule, update: Update) -> Callable[..., None]:
    """`update` where the tensors are. With masters gradients are cast to them, and they are stepped and rounded; 8-bit
    moments, which PyTorch has not, are decoded and encoded."""

    def in_place(
        params: Sequence[Tensor], grads: Sequence[Tensor], *rest: Any, masters: Sequence[Tensor] = (), **options: Any
    ) -> None:
        *moments, steps = rest
        scales = [options[name] for name in rule.scales if name in options]
        values, gradients, states = list(masters or params), list(grads), [list(tensors) for tensors in moments]
        if masters:
            gradients = [torch.empty_like(master) for master in masters]
            torch._foreach_copy_(gradients, list(grads))
        pairs = [list(zip(c, s, strict=True)) for c, s in zip(moments, scales, strict=True)] if scales else []
        for k, pair in enumerate(pairs):
            states[k] = [decode_moment(codes, scale, k == 0) for codes, scale in pair]
        update(values, gradients, states, list(steps))
        for k, pair in enumerate(pairs):
            for state, (codes, scale) in zip(states[k], pair, strict=True):
                new = encode_moment(state, k == 0)
                codes.copy_(new[0])
                scale.copy_(new[1])
        if masters:
            torch._foreach_copy_(list(params), values)

    return in_place


_ADAM: dict[str, Any] = {
    "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False, "maximize": False
}  # fmt: skip
_SGD: dict[str, Any] = {
    "lr": 1e-3, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False
}  # fmt: skip


def _torch_adamw(values: Any, gradients: Any, states: Any, steps: Any) -> None:
    """The kernel of torch.optim.AdamW(fused=True), called directly as it counts steps like adamw_, from 1; compiled,
    the foreach form."""
    options = _ADAM | {"weight_decay": 1e-2}
    if torch.compiler.is_compiling():
        # Inductor refuses the fused kernel. A capturable step leaves the counts on their device.
        counts = [step - 1 for step in steps]
        adamw(values, gradients, *states, [], counts, foreach=True, capturable=True, **options)
    else:
        torch._fused_adamw_(values, gradients, *states, [], steps, **options)


def _torch_adam(values: Any, gradients: Any, states: Any, steps: Any) -> None:
    options = _ADAM | {"weight_decay": 0.0}
    if torch.compiler.is_compiling():
        counts = [step - 1 for step in steps]
        adam(values, gradients, *states, [], counts, foreach=True, capturable=True, **options)
    else:
        torch._fused_adam_(values, gradients, *states, [], steps, **options)


def _torch_sgd(values: Any, gradients: Any, states: Any, steps: Any) -> None:
    if torch.compiler.is_compiling():
        sgd(values, gradients, states[0], foreach=True, **_SGD)
    else:
        torch._fused_sgd_(values, gradients, states[0], is_first_step=False, **_SGD)


def _torch_lion(values: Any, gradients: Any, states: Any, steps: Any) -> None:
    """PyTorch has no Lion: foreach calls, as its optimizers without a fused kernel are made of."""
    (moments,) = states
    directions = torch._foreach_mul(moments, 0.9)
    torch._foreach_add_(directions, gradients, alpha=0.1)
    torch._foreach_sign_(directions)
    torch._foreach_add_(values, directions, alpha=-1e-4)
    torch._foreach_lerp_(moments, gradients, 0.01)


def _torch_lamb(values: Any, gradients: Any, states: Any, steps: Any) -> None:
    """PyTorch has no LAMB: foreach calls, as its optimizers without a fused kernel are made of."""
    first, second = states
    torch._foreach_lerp_(first, gradients, 0.1)
    torch._foreach_mul_(second, 0.999)
    torch._foreach_addcmul_(second, gradients, gradients, 0.001)
    corrections = torch._foreach_pow([torch.full_like(step, 0.999) for step in steps], steps)
    torch._foreach_neg_(corrections)
    torch._foreach_add_(corrections, 1)
    torch._foreach_sqrt_(corrections)
    roots = torch._foreach_sqrt(second)
    torch._foreach_div_(roots, corrections)
    torch._foreach_add_(roots, 1e-6)
    corrections = torch._foreach_pow([torch.full_like(step, 0.9) for step in steps], steps)
    torch._foreach_neg_(corrections)
    torch._foreach_add_(corrections, 1)
    torch._foreach_mul_(roots, corrections)
    directions = torch._foreach_div(first, roots)
    torch._foreach_add_(directions, values, alpha=1e-2)
    trust = torch._foreach_norm(values)
    torch._foreach_div_(trust, torch._foreach_norm(directions))
    torch._foreach_mul_(directions, trust)
    torch._foreach_add_(values, directions, alpha=-1e-3)


# ---- the steps ----

Model = Literal["resnet50", "gpt2-small", "llama3-1b"]


def _in_lists(name: str, update: Update) -> dict[str, Any]:
    """What the bench must know of an op that writes to lists of tensors."""
    return {"written": _written(RULES[name]), "in_place": _in_place(RULES[name], update)}


@operator("adamw_", smaller=smaller, **_in_lists("adamw_", _torch_adamw))
def adamw_(
    draw: Draw,
    *,
    model: Model,
    masters: bool = False,
    eight_bit: bool = False,
    layers: int | None = None,
    divide: int = 1,
) -> Sample:
    """`masters`: float32 master copies and moments. For machines that cannot hold a model: `layers` is the most blocks
    that it has, and each tensor's first dimension is divided by `divide`."""
    return _step(RULES["adamw_"], draw, model, masters, layers, divide, eight_bit)


@operator("adam_", smaller=smaller, **_in_lists("adam_", _torch_adam))
def adam_(
    draw: Draw, *, model: Model, masters: bool = False, layers: int | None = None, divide: int = 1
) -> Sample:  # fmt: skip
    return _step(RULES["adam_"], draw, model, masters, layers, divide)


@operator("sgd_", smaller=smaller, **_in_lists("sgd_", _torch_sgd))
def sgd_(
    draw: Draw, *, model: Model, masters: bool = False, layers: int | None = None, divide: int = 1
) -> Sample:  # fmt: skip
    """With momentum."""
    call = _step(RULES["sgd_"], draw, model, masters, layers, divide)
    return Sample(call.name, call.args, call.kwargs | {"momentum": _SGD["momentum"]})


@operator("lion_", smaller=smaller, **_in_lists("lion_", _torch_lion))
def lion_(
    draw: Draw, *, model: Model, masters: bool = False, layers: int | None = None, divide: int = 1
) -> Sample:  # fmt: skip
    return _step(RULES["lion_"], draw, model, masters, layers, divide)


@operator("lamb_", smaller=smaller, **_in_lists("lamb_", _torch_lamb))
def lamb_(
    draw: Draw, *, model: Model, masters: bool = False, layers: int | None = None, divide: int = 1
) -> Sample:  # fmt: skip
    return _step(RULES["lamb_"], draw, model, masters, layers, divide)
