"""Checks of hyperparameters that torch.optim has no optimizer for, in its words."""

from __future__ import annotations

from torch import Tensor


def check_adam_numbers(lr: float | Tensor, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if lr < 0:
        raise ValueError(f"Invalid learning rate: {lr}")
    for i, beta in enumerate(betas):
        if not 0 <= beta < 1:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    if eps < 0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    if weight_decay < 0:
        raise ValueError(f"Invalid weight_decay value: {weight_decay}")
