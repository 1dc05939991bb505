"""Definitions of the softmax family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype


def dropped(mask: Tensor | None, causal: bool, like: Tensor) -> Tensor | None:
    """Where the mask or the causal bound leave nothing; None where everything is left."""
    drop = ~mask if mask is not None and mask.dtype == torch.bool else None
    if causal:
        rows, cols = like.shape[-2:]
        above = torch.ones(rows, cols, dtype=torch.bool, device=like.device).triu(1 + cols - rows)
        drop = above if drop is None else drop | above
    return drop


def softmax(input: Tensor, mask: Tensor | None, dim: int, scale: float, causal: bool, log: bool) -> Tensor:
    logits = input.to(acc_dtype(input.dtype)) * scale
    if mask is not None and mask.dtype != torch.bool:
        logits = logits + mask
    drop = dropped(mask, causal, input)
    if drop is not None:
        logits = logits.masked_fill(drop, -torch.inf)
    result = torch.log_softmax(logits, dim) if log else torch.softmax(logits, dim)
    return result.to(input.dtype).contiguous()


def softmax_backward(
    grad_output: Tensor, output: Tensor, mask: Tensor | None, dim: int, scale: float, causal: bool, log: bool
) -> Tensor:
    acc = acc_dtype(output.dtype)
    grad, y = grad_output.to(acc), output.to(acc)
    total = (grad if log else grad * y).sum(dim, keepdim=True)
    grad_input = (grad - y.exp() * total if log else y * (grad - total)) * scale
    drop = dropped(mask, causal, output)
    if drop is not None:
        grad_input = grad_input.masked_fill(drop, 0)
    return grad_input.to(output.dtype).contiguous()
