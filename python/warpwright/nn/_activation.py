"""The activation that a layer may apply in its own kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._check import LEAKY_SLOPE, check_activation
from warpwright.nn._reasons import common_reason

#: PyTorch's own activations, by our names.
TORCH_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leaky_relu": lambda x: F.leaky_relu(x, LEAKY_SLOPE),
    "hardswish": F.hardswish,
}
#: Those that are ops by themselves.
_OPS: dict[str | None, Callable[[Tensor], Tensor]] = {
    "relu": ops.relu,
    "gelu": ops.gelu,
    "gelu_tanh": lambda x: ops.gelu(x, "tanh"),
    "silu": ops.silu,
}


def checked_activation(layer: str, activation: str) -> str:
    """The name itself; raises RuntimeError for one that no kernel has."""
    check_activation(f"nn.{layer}", activation)
    return activation


def apply_activation(output: Tensor, activation: str | None) -> Tensor:
    """PyTorch's own, for a layer that fell back."""
    return TORCH_ACTIVATIONS[activation](output)


def activate(input: Tensor, activation: str | None) -> Tensor:
    """An activation as a pass of its own, for a layer whose product another module computed."""
    if activation in _OPS and common_reason(input) is None:
        return _OPS[activation](input)
    return apply_activation(input, activation)
