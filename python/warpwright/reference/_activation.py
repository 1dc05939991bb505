"""The activations of an epilogue, by name."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def activate(name: str, x: Tensor) -> Tensor:
    """activation(x) of the pre-activation x."""
    if name == "relu":
        return torch.relu(x)
    if name == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "silu":
        return x * torch.sigmoid(x)
    return x


def activation_grad(name: str, saved: Tensor) -> Tensor:
    """d activation / d x, from the output for relu, from the pre-activation x for the others."""
    x = saved
    if name == "relu":
        return (x > 0).to(x.dtype)
    if name == "gelu":
        return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    if name == "gelu_tanh":
        t = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        inner_grad = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner_grad
    if name == "silu":
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))
    return torch.ones_like(x)


def needs_preact(name: str) -> bool:
    """Whether the gradient is taken from the pre-activation; relu's is taken from the output."""
    return name not in ("none", "relu")
