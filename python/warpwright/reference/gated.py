"""Definitions of the gated family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype, count_of, needs_preact
from warpwright.reference._activation import activate, activation_grad


def _rows(tensor: Tensor) -> Tensor:
    """The leading dimensions as one, in the dtype of the arithmetic."""
    return tensor.reshape(count_of(tensor.shape[:-1]), tensor.shape[-1]).to(acc_dtype(tensor.dtype))


def _projection(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = input.to(acc_dtype(input.dtype)) @ weight.to(acc_dtype(weight.dtype)).t()
    return product if bias is None else product + bias


def _stored(*tensors: Tensor | None, like: Tensor) -> tuple[Tensor, ...]:
    """In like's dtype; without elements where there is none."""
    return tuple(like.new_empty(0) if t is None else t.to(like.dtype).contiguous() for t in tensors)


def linear_glu(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save: bool,
) -> tuple[Tensor, ...]:
    gate, up = _projection(input, gate_weight, gate_bias), _projection(input, up_weight, up_bias)
    value = activate(activation, gate)
    kept = (gate if needs_preact(activation) else value, up) if save else (None, None)
    return _stored(value * up, *kept, like=input)


def _factor_grads(grad: Tensor, gate: Tensor, up: Tensor | None, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of activation(gate) * up by both factors before the activation, and the product; (rows, hidden)."""
    value = activate(activation, gate) if needs_preact(activation) else gate
    factor = torch.ones_like(value) if up is None else up
    return grad * factor * activation_grad(activation, gate), grad * value, value * factor


def linear_glu_backward(
    grad_output: Tensor,
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate: Tensor,
    up: Tensor,
    activation: str,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    acc, rows = acc_dtype(input.dtype), _rows(input)
    of_gate, of_up, _ = _factor_grads(_rows(grad_output), _rows(gate), _rows(up), activation)
    grads = (
        (of_gate @ gate_weight.to(acc) + of_up @ up_weight.to(acc)).view(input.shape),
        of_gate.t() @ rows,
        of_up.t() @ rows,
        of_gate.sum(0),
        of_up.sum(0),
    )
    return _stored(*(g if need else None for g, need in zip(grads, needs, strict=True)), like=input)


def mlp(
    input: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    gate_weight: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    gate_bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save: bool,
) -> tuple[Tensor, ...]:
    settings = activation, precision, batch_invariant, save
    if gate_weight is not None:
        hidden, gate, up = linear_glu(input, gate_weight, up_weight, gate_bias, up_bias, *settings)
    else:
        preact = _projection(input, up_weight, up_bias)
        value = activate(activation, preact)
        kept = preact if needs_preact(activation) else value
        hidden, gate, up = _stored(value, None, kept if save else None, like=input)
    output = _projection(hidden, down_weight, down_bias)
    if residual is not None:
        output = output + residual
    return *_stored(output, like=input), gate, up


def mlp_backward(
    grad_output: Tensor,
    input: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    gate_weight: Tensor | None,
    gate: Tensor | None,
    up: Tensor,
    activation: str,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    acc, rows, grad = acc_dtype(input.dtype), _rows(input), _rows(grad_output)
    of_hidden = grad @ down_weight.to(acc)
    of_gate_weight = of_gate_bias = None
    if gate is not None and gate_weight is not None:
        of_gate, of_up, hidden = _factor_grads(of_hidden, _rows(gate), _rows(up), activation)
        of_input = of_gate @ gate_weight.to(acc) + of_up @ up_weight.to(acc)
        of_gate_weight, of_gate_bias = of_gate.t() @ rows, of_gate.sum(0)
    else:
        of_up, _, hidden = _factor_grads(of_hidden, _rows(up), None, activation)
        of_input = of_up @ up_weight.to(acc)
    grads = (
        of_input.view(input.shape),
        of_up.t() @ rows,
        grad.t() @ hidden,
        of_gate_weight,
        of_up.sum(0),
        grad.sum(0),
        of_gate_bias,
    )
    return _stored(*(g if need else None for g, need in zip(grads, needs, strict=True)), like=input)
