"""Optimizer steps: all parameters of a model at once, with shapes from its public configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from warpwright.bench.case import Draw, operator
from warpwright.bench.operators._common import suffix
from warpwright.testing import Sample

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

# ---- adamw_ ----


def _smaller(parameters: dict[str, Any]) -> dict[str, Any] | None:
    divide = 2 * parameters.get("divide", 1)
    return parameters | {"divide": divide} if divide <= 1 << 16 else None


def _written(sample: Sample) -> list[Tensor]:
    params, _, first, second, _ = sample.args
    return [*params, *first, *second, *sample.kwargs.get("masters", ())]


def _torch_in_place(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    masters: Sequence[Tensor] = (),
) -> None:
    """PyTorch's best: the kernel of torch.optim.AdamW(fused=True), called directly as it counts steps like adamw_, from
    1; compiled, the foreach form. With masters gradients are cast to them, and they are stepped and rounded."""
    values, gradients = list(masters or params), list(grads)
    state: tuple[list[Tensor], ...] = (list(exp_avgs), list(exp_avg_sqs), [])
    options: dict[str, Any] = {
        "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False, "maximize": False
    }  # fmt: skip
    if masters:
        gradients = [torch.empty_like(master) for master in masters]
        torch._foreach_copy_(gradients, list(grads))
    if torch.compiler.is_compiling():
        # Inductor refuses the fused kernel. A capturable step leaves the counts on their device.
        counts = [step - 1 for step in steps]
        adamw(values, gradients, *state, counts, foreach=True, capturable=True, **options)
    else:
        torch._fused_adamw_(values, gradients, *state, list(steps), **options)
    if masters:
        torch._foreach_copy_(list(params), values)


@operator("adamw_", smaller=_smaller, written=_written, in_place=_torch_in_place)
def adamw_(
    draw: Draw,
    *,
    model: Literal["resnet50", "gpt2-small", "llama3-1b"],
    masters: bool = False,
    layers: int | None = None,
    divide: int = 1,
) -> Sample:
    """`masters`: float32 master copies and moments. For machines that cannot hold a model: `layers` is the most blocks
    that it has, and each tensor's first dimension is divided by `divide`."""
    if divide < 1 or (layers is not None and layers < 1):
        raise RuntimeError(f"warpwright: bench: layers and divide must be at least 1, got {layers} and {divide}")
    shapes = [(max(1, first // divide), *rest) for first, *rest in MODELS[model](layers)]
    state = torch.float32 if masters else draw.dtype

    def each(low: float, high: float, dtype: torch.dtype) -> list[Tensor]:
        return [draw.tensor(*shape, low=low, high=high, grad=False, dtype=dtype) for shape in shapes]

    # Second moments stay off 0, where a step is the quotient of two roundings.
    copies = each(-1, 1, state)
    args = (
        [copy.to(draw.dtype) for copy in copies] if masters else copies,
        each(-1, 1, draw.dtype),
        each(-0.5, 0.5, state),
        each(0.1, 0.5, state),
        [torch.full((), 3.0, device=draw.device) for _ in shapes],
    )
    part = "" if divide == 1 else f" / {divide}"
    label = f"{model}{part}, {len(shapes)} tensors{suffix(masters=masters)}"
    return Sample(label, args, {"masters": copies} if masters else {})
