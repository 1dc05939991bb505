"""The MLPs of transformers: two linear layers, or three where the first is gated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import ops
from warpwright.nn._activation import activate, checked_activation
from warpwright.nn._children import idle_dropout, plain_linears
from warpwright.nn._reasons import common_reason
from warpwright.nn.activation import Dropout
from warpwright.nn.matmul import Linear


class MLP(torch.nn.Module):
    """`drop2(fc2(drop1(activation(fc1(input)))))` on warpwright.ops.mlp, which does not keep the hidden activations.

    Args:
        in_features: of input.
        hidden_features: of the layer between; None for in_features.
        out_features: of the output; None for in_features.
        bias: of both linear layers.
        dropout: probability after the activation and after the output; two numbers where they differ.
        device, dtype: of both linear layers.
        activation: one of `ops.linear`'s names, or None.

    `fc1` and `fc2` are layers of their own: the keys of the state_dict are those of timm's Mlp, and of the MLPs of CLIP
    and Phi. forward takes (..., in_features) and returns (..., out_features). The op reads both layers' parameters. A
    child that does more than its weight and bias say (a LoRA or quantised layer in its place, hooks, a parametrisation)
    is called as the module that it is, and so is every child where the op cannot take the tensors; what then runs on
    PyTorch is counted in warpwright.fallbacks() by the child. Between dropouts that drop, `fc1` keeps its activation
    fused.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        bias: bool = True,
        dropout: float | tuple[float, float] = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = "gelu",
    ):
        super().__init__()
        hidden, out = _or(hidden_features, in_features), _or(out_features, in_features)
        self.fc1 = Linear(in_features, hidden, bias, device, dtype)
        self.fc2 = Linear(hidden, out, bias, device, dtype)
        self.drop1, self.drop2 = (Dropout(p) for p in _pair(dropout))
        self.activation = None if activation is None else checked_activation("MLP", activation)

    def forward(self, input: Tensor) -> Tensor:
        fc1, fc2 = self.fc1, self.fc2
        reason = plain_linears(fc1, fc2) or common_reason(input, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        if reason is not None:
            hidden = activate(fc1(input), self.activation)
        elif idle_dropout(self.drop1):
            tensors = {"up_bias": fc1.bias, "down_bias": fc2.bias}
            return _dropped(self.drop2, ops.mlp(input, fc1.weight, fc2.weight, **tensors, activation=self.activation))
        else:
            hidden = ops.linear(input, fc1.weight, fc1.bias, activation=self.activation)
        return _dropped(self.drop2, fc2(_dropped(self.drop1, hidden)))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


class GatedMLP(torch.nn.Module):
    """`drop2(down_proj(drop1(activation(gate_proj(input)) * up_proj(input))))` on warpwright.ops.mlp: SwiGLU's MLP.

    Args:
        in_features: of input.
        hidden_features: of gate and up.
        out_features: of the output; None for in_features.
        bias: of the three linear layers.
        dropout: probability after the product with the gate and after the output; two numbers where they differ.
        device, dtype: of the three linear layers.
        activation: of the gate, one of `ops.linear`'s names, or None.

    The keys of the state_dict are those of Llama's MLP, and of Qwen's, Mistral's and Gemma's (`gate_proj`, `up_proj`,
    `down_proj`). Input, output, and when the children are called as modules: see `MLP`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        bias: bool = False,
        dropout: float | tuple[float, float] = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = "silu",
    ):
        super().__init__()
        self.gate_proj = Linear(in_features, hidden_features, bias, device, dtype)
        self.up_proj = Linear(in_features, hidden_features, bias, device, dtype)
        self.down_proj = Linear(hidden_features, _or(out_features, in_features), bias, device, dtype)
        self.drop1, self.drop2 = (Dropout(p) for p in _pair(dropout))
        self.activation = None if activation is None else checked_activation("GatedMLP", activation)

    def forward(self, input: Tensor) -> Tensor:
        gate, up, down = self.gate_proj, self.up_proj, self.down_proj
        reason = plain_linears(gate, up, down)
        if reason is None:
            reason = common_reason(input, gate.weight, up.weight, down.weight, gate.bias, up.bias, down.bias)
        if reason is not None:
            hidden = activate(gate(input), self.activation) * up(input)
        elif idle_dropout(self.drop1):
            tensors = {"gate_weight": gate.weight, "gate_bias": gate.bias, "up_bias": up.bias, "down_bias": down.bias}
            return _dropped(self.drop2, ops.mlp(input, up.weight, down.weight, **tensors, activation=self.activation))
        else:
            weights = gate.weight, up.weight, gate.bias, up.bias
            hidden = ops.linear_glu(input, *weights, activation=self.activation)
        return _dropped(self.drop2, down(_dropped(self.drop1, hidden)))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


def _or(features: int | None, otherwise: int) -> int:
    return otherwise if features is None else features


def _pair(dropout: float | tuple[float, float]) -> tuple[float, float]:
    return dropout if isinstance(dropout, tuple) else (dropout, dropout)


def _dropped(module: torch.nn.Module, tensor: Tensor) -> Tensor:
    """`module(tensor)`, without the pass of a dropout that drops nothing."""
    return tensor if idle_dropout(module) else module(tensor)
