"""What the families share."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any, Literal

from torch import Tensor

from warpwright.bench.case import Draw

#: What an epilogue may apply.
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "leaky_relu", "hardswish"]


def draw_weight(draw: Draw, *shape: int, fan_in: int) -> Tensor:
    """A weight that keeps what it makes near 1: sums of `fan_in` products with numbers from [-1, 1) get variance 1."""
    bound = 3 / sqrt(fan_in)
    return draw.tensor(*shape, low=-bound, high=bound)


def draw_transposed(tensor: Tensor) -> Tensor:
    """The same leaf with its last two dimensions exchanged, so that it lies the other way in memory."""
    return tensor.detach().mT.requires_grad_(tensor.requires_grad)


def suffix(**parts: object) -> str:
    """What a label ends in: " + bias" for bias=True, ", gelu" for activation="gelu", nothing for what is not there."""
    present = {name: value for name, value in parts.items() if value}
    return "".join(f" + {name}" if value is True else f", {value}" for name, value in present.items())


def halve_largest(*names: str, least: int = 1) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """`Operator.smaller` that halves the largest of these parameters, so that none shrinks to nothing alone."""

    def smaller(parameters: dict[str, Any]) -> dict[str, Any] | None:
        largest = max(names, key=lambda name: parameters[name])
        halved = parameters[largest] // 2
        return parameters | {largest: halved} if halved >= least else None

    return smaller
