"""Definitions of the loss family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype


def _classes_last(tensor: Tensor) -> Tensor:
    """(N, C, d1, ...) as (N, d1, ..., C)."""
    return tensor.movedim(1, -1) if tensor.dim() > 1 else tensor


def _targets(target: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows are ignored, which have a class for a target, and an index that is safe to gather with."""
    known = (target >= 0) & (target < classes)
    return target == ignore_index, known, torch.where(known, target, 0).unsqueeze(-1)


def cross_entropy(
    input: Tensor, target: Tensor, ignore_index: int, reduction: str, label_smoothing: float, float32_loss: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x = _classes_last(input).to(acc_dtype(input.dtype))
    ignored, known, index = _targets(target, x.shape[-1], ignore_index)
    max = x.amax(-1)
    gaps = max.unsqueeze(-1) - x
    log_sum = (-gaps).exp().sum(-1).log()
    lse = torch.where(ignored, 0.0, max + log_sum)
    loss = log_sum + gaps.gather(-1, index).squeeze(-1)
    if label_smoothing > 0:
        loss = (1 - label_smoothing) * loss + label_smoothing * (log_sum + gaps.mean(-1))
    loss = torch.where(ignored, 0.0, torch.where(known, loss, torch.nan))
    valid = (~ignored).sum()
    if reduction != "none":
        loss = loss.sum() / valid if reduction == "mean" else loss.sum()
    loss = loss if float32_loss else loss.to(input.dtype)
    return loss.contiguous(), lse.contiguous(), valid.new_empty(0) if reduction == "none" else valid


def cross_entropy_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    lse: Tensor,
    valid: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    x = _classes_last(input).to(acc_dtype(input.dtype))
    ignored, known, index = _targets(target, x.shape[-1], ignore_index)
    softmax = (x - lse.unsqueeze(-1)).exp()
    hard = torch.zeros_like(x).scatter(-1, index, 1 - label_smoothing)
    scale = grad_loss.to(x.dtype) / valid if reduction == "mean" else grad_loss.to(x.dtype)
    scale = torch.where(known, scale, torch.nan).unsqueeze(-1)
    grad = scale * (softmax - label_smoothing / x.shape[-1] - hard)
    grad = torch.where(ignored.unsqueeze(-1), 0.0, grad)
    if input.dim() > 1:
        grad = grad.movedim(-1, 1)
    return grad.to(input.dtype).contiguous()
