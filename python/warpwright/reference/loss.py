"""Definitions of the losses over classes."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype
from warpwright.reference._loss import classes_first, classes_last, reduced, targets


def _masses(x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float) -> Tensor:
    """What each class counts in each row, (*, C): `a` of csrc/kernels/loss.h; 0 in rows that do not count."""
    if target.is_floating_point():
        of_target = classes_last(target).to(x.dtype)
        counts = torch.tensor(True, device=x.device)
    else:
        ignored, known, index = targets(target, x.shape[-1], ignore_index)
        of_target = torch.zeros_like(x).scatter(-1, index, 1.0)
        of_target = torch.where(known.unsqueeze(-1), of_target, torch.nan)
        counts = ~ignored.unsqueeze(-1)
    a = (1 - smoothing) * of_target + smoothing / x.shape[-1]
    if weight is not None:
        a = a * weight.to(x.dtype)
    return torch.where(counts, a, 0.0)


def _logits(input: Tensor, softcap: float) -> Tensor:
    x = classes_last(input).to(acc_dtype(input.dtype))
    return softcap * (x / softcap).tanh() if softcap > 0 else x


def _counts(target: Tensor, ignore_index: int) -> Tensor:
    """Which rows count; every one where the target holds probabilities."""
    return torch.ones((), dtype=torch.bool, device=target.device) if target.is_floating_point() else (
        target != ignore_index)  # fmt: skip


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    float32_loss: bool,
) -> tuple[Tensor, ...]:
    y = _logits(input, softcap)
    a = _masses(y, target, weight, ignore_index, label_smoothing)
    counts = _counts(target, ignore_index)
    max = y.amax(-1, keepdim=True)
    log_sum = (y - max).exp().sum(-1, keepdim=True).log()
    gaps = log_sum + (max - y)
    if target.is_floating_point():
        row_loss = (a * gaps).sum(-1)
    else:
        _, known, index = targets(target, y.shape[-1], ignore_index)
        weights = torch.ones_like(y[..., :1]).expand_as(y) if weight is None else weight.to(y.dtype).expand_as(y)
        own = torch.where(known.unsqueeze(-1), (1 - label_smoothing) * (weights * gaps).gather(-1, index), torch.nan)
        row_loss = own.squeeze(-1)
        if label_smoothing > 0:
            row_loss = row_loss + label_smoothing * (weights * gaps).mean(-1)
    lse = (max + log_sum).squeeze(-1)
    row_loss = torch.where(counts, row_loss + z_loss * lse * lse, 0.0)
    lse = torch.where(counts, torch.stack((max.squeeze(-1), log_sum.squeeze(-1))), 0.0)
    has_mass = weight is not None or target.is_floating_point()
    mass = a.sum(-1) if has_mass else lse.new_empty(0)
    loss, total = reduced(row_loss, target, weight, ignore_index, reduction, y.shape[-1])
    loss = loss if float32_loss else loss.to(input.dtype)
    return loss.contiguous(), lse.contiguous(), mass.contiguous(), total


def cross_entropy_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    mass: Tensor,
    total: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    need_input: bool,
    need_target: bool,
) -> tuple[Tensor, Tensor]:
    y, soft = _logits(input, softcap), target.is_floating_point()
    a = _masses(y, target, weight, ignore_index, label_smoothing)
    of_row = grad_loss.to(y.dtype) / total if reduction == "mean" else grad_loss.to(y.dtype)
    scale, (max, log_sum) = of_row.unsqueeze(-1), lse.unsqueeze(-1)
    grad_input, grad_target = input.new_empty(0), target.new_empty(0)
    if need_input:
        factor = (mass.unsqueeze(-1) if mass.numel() > 0 else 1.0) + 2 * z_loss * (max + log_sum)
        grad = scale * (((y - max) - log_sum).exp() * factor - a)
        if softcap > 0:
            grad = grad * (1 - (y / softcap) ** 2)
        grad = torch.where(_counts(target, ignore_index).unsqueeze(-1), grad, 0.0)
        grad_input = classes_first(grad, input).to(input.dtype).contiguous()
    if need_target and soft:
        grad = scale * (1 - label_smoothing) * (log_sum + (max - y))
        if weight is not None:
            grad = grad * weight.to(y.dtype)
        grad_target = classes_first(grad, input).to(target.dtype).contiguous()
    return grad_input, grad_target


def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, float32_loss: bool
) -> tuple[Tensor, Tensor]:
    x = classes_last(input).to(acc_dtype(input.dtype))
    ignored, known, index = targets(target, x.shape[-1], ignore_index)
    row_loss = -x.gather(-1, index).squeeze(-1)
    if weight is not None:
        row_loss = row_loss * weight.to(x.dtype)[index.squeeze(-1)]
    row_loss = torch.where(ignored, 0.0, torch.where(known, row_loss, torch.nan))
    loss, total = reduced(row_loss, target, weight, ignore_index, reduction, x.shape[-1])
    return (loss if float32_loss else loss.to(input.dtype)).contiguous(), total


def nll_loss_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    total: Tensor,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    x = classes_last(input).to(acc_dtype(input.dtype))
    ignored, known, index = targets(target, x.shape[-1], ignore_index)
    grad = -grad_loss.to(x.dtype).expand(target.shape)
    if reduction == "mean":
        grad = grad / total
    if weight is not None:
        grad = grad * weight.to(x.dtype)[index.squeeze(-1)]
    grad = torch.where(ignored, 0.0, torch.where(known, grad, torch.nan)).unsqueeze(-1)
    return classes_first(torch.zeros_like(x).scatter(-1, index, grad), input).to(input.dtype).contiguous()
