"""Definitions of the losses of single elements."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright._check import acc_dtype


def _wide(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    """In the dtype of the arithmetic; 1 where there is none."""
    first = tensors[0]
    assert first is not None
    acc = acc_dtype(first.dtype)
    return tuple(torch.ones((), dtype=acc, device=first.device) if t is None else t.to(acc) for t in tensors)


def _divisor(input: Tensor, reduction: str) -> int:
    if reduction == "batchmean":
        return input.shape[0] if input.dim() > 0 else 1
    return input.numel() if reduction == "mean" else 1


def _reduced(loss: Tensor, input: Tensor, reduction: str, float32_loss: bool) -> Tensor:
    if reduction != "none":
        loss = loss.sum() / _divisor(input, reduction)
    return (loss if float32_loss else loss.to(input.dtype)).contiguous()


def _grads(
    grad_loss: Tensor, input: Tensor, factors: tuple[Tensor, Tensor], reduction: str, needs: tuple[bool, ...]
) -> tuple[Tensor, ...]:
    scale = grad_loss.to(factors[0].dtype) / _divisor(input, reduction)
    return tuple(
        (scale * factor).to(input.dtype).contiguous() if need else input.new_empty(0)
        for factor, need in zip(factors, needs, strict=True)
    )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    float32_loss: bool,
) -> Tensor:
    x, t, w, v = _wide(input, target, weight, pos_weight)
    loss = w * ((1 - t) * x - (1 + (v - 1) * t) * F.logsigmoid(x))
    return _reduced(loss, input, reduction, float32_loss)


def binary_cross_entropy_with_logits_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    *needs: bool,
) -> tuple[Tensor, ...]:
    x, t, w, v = _wide(input, target, weight, pos_weight)
    of_input, of_target = (1 + (v - 1) * t) * x.sigmoid() - v * t, (1 - v) * F.logsigmoid(x) - x
    return _grads(grad_loss, input, (w * of_input, w * of_target), reduction, needs)


def kl_div(input: Tensor, target: Tensor, reduction: str, log_target: bool, float32_loss: bool) -> Tensor:
    x, t = _wide(input, target)
    loss = t.exp() * (t - x) if log_target else torch.xlogy(t, t) - t * x
    return _reduced(loss, input, reduction, float32_loss)


def kl_div_backward(
    grad_loss: Tensor, input: Tensor, target: Tensor, reduction: str, log_target: bool, *needs: bool
) -> tuple[Tensor, ...]:
    x, t = _wide(input, target)
    if log_target:
        factors = -t.exp(), t.exp() * (t - x) + t.exp()
    else:
        factors = -t, torch.where(t == 0, 0.0, t.log()) + t / t - x
    return _grads(grad_loss, input, factors, reduction, needs)
