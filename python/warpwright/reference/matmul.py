"""Definitions of the matmul family."""

from __future__ import annotations

from torch import Tensor

from warpwright._check import acc_dtype
from warpwright.reference._activation import activate, activation_grad, needs_preact


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str, save_preact: bool
) -> tuple[Tensor, Tensor]:
    acc = acc_dtype(input.dtype)
    preact = input.to(acc) @ weight.to(acc).t()
    if bias is not None:
        preact = preact + bias
    if residual is not None:
        preact = preact + residual
    keep = save_preact and needs_preact(activation)
    output = activate(activation, preact).to(input.dtype).contiguous()
    return output, preact.to(input.dtype).contiguous() if keep else input.new_empty(0)


def linear_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    activation: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, acc = input.dtype, acc_dtype(input.dtype)
    grad = grad_output.to(acc)
    if saved is not None:
        grad = grad * activation_grad(activation, saved.to(acc))
    count = grad.shape[:-1].numel()
    rows = grad.reshape(count, weight.shape[0])
    nothing = input.new_empty(0)
    return (
        (grad @ weight.to(acc)).to(dtype).contiguous() if need_input else nothing,
        (rows.t() @ input.to(acc).reshape(count, weight.shape[1])).to(dtype).contiguous()
        if need_weight
        else nothing.clone(),
        rows.sum(0).to(dtype) if need_bias else nothing.clone(),
        grad.to(dtype, copy=True).contiguous() if need_residual else nothing.clone(),
    )
