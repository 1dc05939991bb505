"""Definitions of the norm family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype


def _dims(tensor: Tensor, normalized_ndim: int) -> list[int]:
    return list(range(tensor.dim() - normalized_ndim, tensor.dim()))


def _over_rows(tensor: Tensor, normalized_ndim: int) -> Tensor:
    """The sum over everything but the normalised dimensions."""
    rows = tensor.shape[: tensor.dim() - normalized_ndim].numel()
    return tensor.reshape(rows, *tensor.shape[tensor.dim() - normalized_ndim :]).sum(0)


def _nothing(like: Tensor) -> Tensor:
    return like.new_empty(0)


def rms_norm(
    input: Tensor, residual: Tensor | None, normalized_ndim: int, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    total = input if residual is None else input + residual
    h = total.to(acc_dtype(input.dtype))
    dims = _dims(h, normalized_ndim)
    rstd = torch.rsqrt((h * h).mean(dims) + eps)
    y = h * rstd.reshape(*rstd.shape, *[1] * normalized_ndim)
    if weight is not None:
        y = y * weight
    return y.to(input.dtype).contiguous(), _nothing(input) if residual is None else total.contiguous(), rstd


def rms_norm_backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    sum: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    normalized_ndim: int,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    acc = acc_dtype(sum.dtype)
    dims = _dims(sum, normalized_ndim)
    rstd = rstd.reshape(*rstd.shape, *[1] * normalized_ndim)
    dy = grad_output.to(acc)
    xhat = sum.to(acc) * rstd
    grad_input = grad_weight = _nothing(sum)
    if need_input:
        g = dy if weight is None else dy * weight
        dx = (g - xhat * (g * xhat).mean(dims, keepdim=True)) * rstd
        if grad_sum is not None:
            dx = dx + grad_sum
        grad_input = dx.to(sum.dtype).contiguous()
    if need_weight:
        grad_weight = _over_rows(dy * xhat, normalized_ndim).to(sum.dtype)
    return grad_input, grad_weight if need_weight else _nothing(sum)


def layer_norm(
    input: Tensor,
    residual: Tensor | None,
    normalized_ndim: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = input if residual is None else input + residual
    h = total.to(acc_dtype(input.dtype))
    dims = _dims(h, normalized_ndim)
    mean = h.mean(dims, keepdim=True)
    rstd = torch.rsqrt(((h - mean) ** 2).mean(dims, keepdim=True) + eps)
    y = (h - mean) * rstd
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    lead = input.shape[: input.dim() - normalized_ndim]
    total = _nothing(input) if residual is None else total.contiguous()
    return y.to(input.dtype).contiguous(), total, mean.reshape(lead), rstd.reshape(lead)


def layer_norm_backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    sum: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    normalized_ndim: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    acc = acc_dtype(sum.dtype)
    dims = _dims(sum, normalized_ndim)
    ones = [1] * normalized_ndim
    rstd = rstd.reshape(*rstd.shape, *ones)
    dy = grad_output.to(acc)
    xhat = (sum.to(acc) - mean.reshape(*mean.shape, *ones)) * rstd
    grad_input = _nothing(sum)
    if need_input:
        g = dy if weight is None else dy * weight
        dx = (g - g.mean(dims, keepdim=True) - xhat * (g * xhat).mean(dims, keepdim=True)) * rstd
        if grad_sum is not None:
            dx = dx + grad_sum
        grad_input = dx.to(sum.dtype).contiguous()
    return (
        grad_input,
        _over_rows(dy * xhat, normalized_ndim).to(sum.dtype) if need_weight else _nothing(sum),
        _over_rows(dy, normalized_ndim).to(sum.dtype) if need_bias else _nothing(sum),
    )
