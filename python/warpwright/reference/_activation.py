"""The activations of an epilogue, by name."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from warpwright._check import LEAKY_SLOPE


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
    if name == "sigmoid":
        return torch.sigmoid(x)
    if name == "tanh":
        return torch.tanh(x)
    if name == "leaky_relu":
        return torch.where(x > 0, x, x * LEAKY_SLOPE)
    if name == "hardswish":
        return x * torch.clamp(x + 3, 0, 6) / 6
    return x


def activation_grad(name: str, saved: Tensor) -> Tensor:
    """d activation / d x, from the pre-activation x where `needs_preact` says so, else from the output."""
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
    if name == "sigmoid":
        return saved * (1 - saved)
    if name == "tanh":
        return 1 - saved * saved
    if name == "leaky_relu":
        return torch.ones_like(x).where(saved > 0, torch.full_like(x, LEAKY_SLOPE))
    if name == "hardswish":
        return (x / 3 + 0.5).where(x.abs() < 3, (x > 0).to(x.dtype))
    return torch.ones_like(x)
