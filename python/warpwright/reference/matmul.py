"""Definitions of the matmul family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype, count_of, needs_preact
from warpwright.ops._epilogue import keeps_preact
from warpwright.reference._activation import activate, activation_grad


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save_preact: bool,
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
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    rows = count_of(grad_output.shape[:-1])
    saved = None if saved is None else saved.reshape(rows, weight.shape[0])
    grad, features = grad_output.reshape(rows, weight.shape[0]), input.reshape(rows, weight.shape[1])
    grads = matmul_backward(grad, features, weight.t(), saved, 1.0, 1.0, activation, 1.0, precision, False, *needs)
    shapes = (input.shape, None, None, grad_output.shape)
    grads = tuple(g.view(s) if need and s is not None else g for g, s, need in zip(grads, shapes, needs, strict=True))
    return grads[0], grads[1].t().contiguous() if needs[1] else grads[1], *grads[2:]


def saturated(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype`; what is too large for 8 bits becomes the largest number."""
    if dtype.itemsize == 1:
        largest = torch.finfo(dtype).max
        tensor = tensor.clamp(-largest, largest)
    return tensor.to(dtype)


def matmul(
    input: Tensor,
    other: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    alpha: float,
    beta: float,
    activation: str,
    output_scale: float,
    out_dtype: torch.dtype | None,
    precision: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    acc = acc_dtype(input.dtype)
    preact = alpha * (input.to(acc) @ other.to(acc))
    if bias is not None:
        preact = preact + bias
    if residual is not None:
        preact = preact + beta * residual.to(acc)
    value = activate(activation, preact)
    output = saturated(output_scale * value, out_dtype or input.dtype).contiguous()
    if not keeps_preact(input.dtype, activation, output_scale, out_dtype, save_preact):
        return output, input.new_empty(0)
    return output, (preact if needs_preact(activation) else value).to(input.dtype).contiguous()


def matmul_backward(
    grad_output: Tensor,
    input: Tensor,
    other: Tensor,
    saved: Tensor | None,
    alpha: float,
    beta: float,
    activation: str,
    output_scale: float,
    precision: str,
    batch_invariant: bool,
    need_input: bool,
    need_other: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, ...]:
    dtype, acc = input.dtype, acc_dtype(input.dtype)
    grad = output_scale * grad_output.to(acc)
    if saved is not None:
        grad = grad * activation_grad(activation, saved.to(acc))
    grads = (
        alpha * (grad @ other.to(acc).mT) if need_input else None,
        alpha * (input.to(acc).mT @ grad) if need_other else None,
        grad.sum(tuple(range(grad.dim() - 1))) if need_bias else None,
        beta * grad if need_residual else None,
    )
    return tuple(input.new_empty(0) if g is None else g.to(dtype).contiguous() for g in grads)
