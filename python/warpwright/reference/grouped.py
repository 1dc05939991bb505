"""Definitions of the grouped family."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from warpwright._check import acc_dtype, needs_preact
from warpwright.reference._activation import activate, activation_grad


def _groups(offsets: Tensor, rows: int) -> Iterator[slice]:
    """The rows of each group. An offset that lies below an earlier one or above `rows` counts as that."""
    first = 0
    for offset in offsets.tolist():
        end = max(first, min(offset, rows))
        yield slice(first, end)
        first = end


def grouped_matmul(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    activation: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    acc = acc_dtype(input.dtype)
    output = input.new_zeros(input.shape[0], weight.shape[1])
    preact = torch.zeros_like(output) if save_preact and needs_preact(activation) else input.new_empty(0)
    for group, rows in enumerate(_groups(offsets, input.shape[0])):
        value = input[rows].to(acc) @ weight[group].to(acc).t()
        if bias is not None:
            value = value + bias[group]
        output[rows] = activate(activation, value).to(input.dtype)
        if preact.dim() == 2:
            preact[rows] = value.to(input.dtype)
    return output, preact


def grouped_matmul_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    saved: Tensor | None,
    activation: str,
    batch_invariant: bool,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    acc = acc_dtype(input.dtype)
    grad_input = input.new_zeros(input.shape if need_input else (0,))
    grad_weight = input.new_zeros(weight.shape if need_weight else (0,))
    grad_bias = input.new_zeros(weight.shape[:2] if need_bias else (0,))
    for group, rows in enumerate(_groups(offsets, input.shape[0])):
        grad = grad_output[rows].to(acc)
        if saved is not None:
            grad = grad * activation_grad(activation, saved[rows].to(acc))
        if need_input:
            grad_input[rows] = (grad @ weight[group].to(acc)).to(input.dtype)
        if need_weight:
            grad_weight[group] = (grad.t() @ input[rows].to(acc)).to(input.dtype)
        if need_bias:
            grad_bias[group] = grad.sum(0).to(input.dtype)
    return grad_input, grad_weight, grad_bias
