"""Definitions of the norm family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype, count_of
from warpwright.reference._philox import dropout_threshold, random_words


def _dims(tensor: Tensor, normalized_ndim: int) -> list[int]:
    return list(range(tensor.dim() - normalized_ndim, tensor.dim()))


def _over_rows(tensor: Tensor, normalized_ndim: int) -> Tensor:
    """The sum over everything but the normalised dimensions."""
    rows = count_of(tensor.shape[: tensor.dim() - normalized_ndim])
    return tensor.reshape(rows, *tensor.shape[tensor.dim() - normalized_ndim :]).sum(0)


def _nothing(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _dropout_factors(
    like: Tensor, normalized_ndim: int, dropout_p: float, seed: Tensor | None, offset: int
) -> Tensor | None:
    """What dropout multiplies each element by; None without it."""
    if dropout_p == 0:
        return None
    assert seed is not None
    lead = like.dim() - normalized_ndim
    words = random_words(seed, count_of(like.shape[:lead]), count_of(like.shape[lead:]), offset)
    kept = (words >= dropout_threshold(dropout_p)).reshape(like.shape)
    scale = 1 / (1 - dropout_p) if dropout_p < 1 else 0.0
    return kept.to(acc_dtype(like.dtype)) * scale


def _total(input: Tensor, residual: Tensor | None, factors: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is normalised, and the output `sum`: nothing where that is the input."""
    if residual is None and factors is None:
        return input, _nothing(input)
    acc = acc_dtype(input.dtype)
    total = input.to(acc) if factors is None else input.to(acc) * factors
    total = (total if residual is None else total + residual.to(acc)).to(input.dtype).contiguous()
    return total, total


def _scaled(y: Tensor, weight: Tensor | None, weight_offset: float) -> Tensor:
    return y if weight is None else y * (weight.to(y.dtype) + weight_offset)


def _input_grads(
    dx: Tensor, grad_sum: Tensor | None, factors: Tensor | None, sum: Tensor, need_input: bool, need_residual: bool
) -> tuple[Tensor, Tensor]:
    """Of input and of residual, from the gradient of their normalised sum."""
    if grad_sum is not None:
        dx = dx + grad_sum
    of_input = dx if factors is None else dx * factors
    return (
        of_input.to(sum.dtype).contiguous() if need_input else _nothing(sum),
        dx.to(sum.dtype, copy=True).contiguous() if need_residual else _nothing(sum),
    )


def rms_norm(
    input: Tensor,
    residual: Tensor | None,
    normalized_ndim: int,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    dropout_p: float,
    seed: Tensor | None,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    factors = _dropout_factors(input, normalized_ndim, dropout_p, seed, offset)
    total, returned = _total(input, residual, factors)
    h = total.to(acc_dtype(input.dtype))
    dims = _dims(h, normalized_ndim)
    rstd = torch.rsqrt((h * h).mean(dims) + eps)
    y = _scaled(h * rstd.reshape(*rstd.shape, *[1] * normalized_ndim), weight, weight_offset)
    return y.to(input.dtype).contiguous(), returned, rstd


def rms_norm_backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    sum: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    normalized_ndim: int,
    weight_offset: float,
    dropout_p: float,
    seed: Tensor | None,
    offset: int,
    need_input: bool,
    need_residual: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    acc = acc_dtype(sum.dtype)
    dims = _dims(sum, normalized_ndim)
    rstd = rstd.reshape(*rstd.shape, *[1] * normalized_ndim)
    dy = grad_output.to(acc)
    xhat = sum.to(acc) * rstd
    g = _scaled(dy, weight, weight_offset)
    dx = (g - xhat * (g * xhat).mean(dims, keepdim=True)) * rstd
    factors = _dropout_factors(sum, normalized_ndim, dropout_p, seed, offset)
    return (
        *_input_grads(dx, grad_sum, factors, sum, need_input, need_residual),
        _over_rows(dy * xhat, normalized_ndim).to(sum.dtype) if need_weight else _nothing(sum),
    )


def layer_norm(
    input: Tensor,
    residual: Tensor | None,
    normalized_ndim: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    weight_offset: float,
    dropout_p: float,
    seed: Tensor | None,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factors = _dropout_factors(input, normalized_ndim, dropout_p, seed, offset)
    total, returned = _total(input, residual, factors)
    h = total.to(acc_dtype(input.dtype))
    dims = _dims(h, normalized_ndim)
    mean = h.mean(dims, keepdim=True)
    rstd = torch.rsqrt(((h - mean) ** 2).mean(dims, keepdim=True) + eps)
    y = _scaled((h - mean) * rstd, weight, weight_offset)
    if bias is not None:
        y = y + bias
    lead = input.shape[: input.dim() - normalized_ndim]
    return y.to(input.dtype).contiguous(), returned, mean.reshape(lead), rstd.reshape(lead)


def layer_norm_backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    sum: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    normalized_ndim: int,
    weight_offset: float,
    dropout_p: float,
    seed: Tensor | None,
    offset: int,
    need_input: bool,
    need_residual: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    acc = acc_dtype(sum.dtype)
    dims = _dims(sum, normalized_ndim)
    ones = [1] * normalized_ndim
    rstd = rstd.reshape(*rstd.shape, *ones)
    dy = grad_output.to(acc)
    xhat = (sum.to(acc) - mean.reshape(*mean.shape, *ones)) * rstd
    g = _scaled(dy, weight, weight_offset)
    dx = (g - g.mean(dims, keepdim=True) - xhat * (g * xhat).mean(dims, keepdim=True)) * rstd
    factors = _dropout_factors(sum, normalized_ndim, dropout_p, seed, offset)
    return (
        *_input_grads(dx, grad_sum, factors, sum, need_input, need_residual),
        _over_rows(dy * xhat, normalized_ndim).to(sum.dtype) if need_weight else _nothing(sum),
        _over_rows(dy, normalized_ndim).to(sum.dtype) if need_bias else _nothing(sum),
    )


def l2_normalize(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = input.to(acc_dtype(input.dtype))
    norm = (x * x).sum(-1).sqrt()
    return (x / norm.clamp(min=eps).unsqueeze(-1)).to(input.dtype).contiguous(), norm


def l2_normalize_backward(grad_output: Tensor, input: Tensor, norm: Tensor, eps: float) -> Tensor:
    acc = acc_dtype(input.dtype)
    divisor = norm.clamp(min=eps).unsqueeze(-1)
    # Contiguous: PyTorch sums in another order elsewhere, and what autograd hands down lies as it likes.
    dy, y = grad_output.to(acc).contiguous(), (input.to(acc) / divisor).contiguous()
    # A row that is shorter than eps is divided by a constant.
    dot = torch.where(norm.unsqueeze(-1) < eps, 0.0, (dy * y).sum(-1, keepdim=True))
    return ((dy - y * dot) / divisor).to(input.dtype).contiguous()
