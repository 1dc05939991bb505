"""What the definitions of the losses share."""

from __future__ import annotations

import torch
from torch import Tensor


def classes_last(tensor: Tensor) -> Tensor:
    """(N, C, d1, ...) as (N, d1, ..., C)."""
    return tensor.movedim(1, -1) if tensor.dim() > 1 else tensor


def classes_first(tensor: Tensor, like: Tensor) -> Tensor:
    """The way back, to the order of `like`."""
    return tensor.movedim(-1, 1) if like.dim() > 1 else tensor


def targets(target: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows are ignored, which have a class for a target, and an index that is safe to gather with."""
    known = (target >= 0) & (target < classes)
    return target == ignore_index, known, torch.where(known, target, 0).unsqueeze(-1)


def reduced(
    row_loss: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, classes: int
) -> tuple[Tensor, Tensor]:
    """(loss, what a mean is divided by: the weights of the targets, or with probabilities the number of rows)."""
    if reduction == "none":
        return row_loss, row_loss.new_empty(0)
    counted = torch.ones_like(row_loss)
    if not target.is_floating_point():
        ignored, known, index = targets(target, classes, ignore_index)
        if weight is not None:
            of_target = weight.to(row_loss.dtype)[index.squeeze(-1)]
            counted = torch.where(known, of_target, torch.nan)
        counted = torch.where(ignored, 0.0, counted)
    total = counted.sum()
    return (row_loss.sum() / total if reduction == "mean" else row_loss.sum()), total
