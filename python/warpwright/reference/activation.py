"""Definitions of the activation family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype, count_of, needs_preact
from warpwright.reference._activation import activate, activation_grad


def _value(name: str, x: Tensor) -> Tensor:
    return torch.relu(x).square() if name == "relu_squared" else activate(name, x)


def _gradient(name: str, x: Tensor, grad: Tensor) -> Tensor:
    """grad times the derivative at x. Where relu is zero its gradient is, even of an infinite one, and NaN lets
    gradients pass: as torch."""
    if name in ("relu", "relu_squared"):
        return torch.where(x <= 0, 0.0, grad if name == "relu" else 2 * x * grad)
    return grad * activation_grad(name, x if needs_preact(name) else activate(name, x))


def _added(x: Tensor, bias: Tensor | None) -> Tensor:
    x = x.to(acc_dtype(x.dtype))
    return x if bias is None else x + bias


def _column_sums(grad: Tensor, dtype: torch.dtype) -> Tensor:
    return grad.reshape(count_of(grad.shape[:-1]), grad.shape[-1]).sum(0).to(dtype)


def activation(input: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return _value(activation, _added(input, bias)).to(input.dtype).contiguous()


def activation_backward(
    grad_output: Tensor, input: Tensor, bias: Tensor | None, activation: str, need_input: bool, need_bias: bool
) -> tuple[Tensor, Tensor]:
    nothing = input.new_empty(0)
    grad = _gradient(activation, _added(input, bias), grad_output.to(acc_dtype(input.dtype)))
    grad_input = grad.to(input.dtype).contiguous() if need_input else nothing
    return grad_input, _column_sums(grad, input.dtype) if need_bias else nothing


def glu(gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None, activation: str) -> Tensor:
    return (_value(activation, _added(gate, gate_bias)) * _added(up, up_bias)).to(gate.dtype).contiguous()


def glu_backward(
    grad_output: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    need_gate: bool,
    need_up: bool,
    need_gate_bias: bool,
    need_up_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = gate.dtype
    x, dy = _added(gate, gate_bias), grad_output.to(acc_dtype(gate.dtype))
    grad_gate = _gradient(activation, x, dy * _added(up, up_bias))
    grad_up = dy * _value(activation, x)
    return (
        grad_gate.to(dtype).contiguous() if need_gate else gate.new_empty(0),
        grad_up.to(dtype).contiguous() if need_up else gate.new_empty(0),
        _column_sums(grad_gate, dtype) if need_gate_bias else gate.new_empty(0),
        _column_sums(grad_up, dtype) if need_up_bias else gate.new_empty(0),
    )
