"""Definitions of the losses behind a linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright._check import acc_dtype
from warpwright.reference import loss as losses


def _logits(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(rows, classes), in the dtype of the arithmetic."""
    acc = acc_dtype(input.dtype)
    logits = input.reshape(input.shape[:-1].numel(), input.shape[-1]).to(acc) @ weight.to(acc).t()
    return logits if bias is None else logits + bias.to(acc)


def _grads(grad: Tensor, input: Tensor, weight: Tensor, needs: Any) -> tuple[Tensor, ...]:
    """From those of the logits, (rows, classes)."""
    rows = input.reshape(grad.shape[0], input.shape[-1]).to(grad.dtype)
    grads = (grad @ weight.to(grad.dtype)).view(input.shape), grad.t() @ rows, grad.sum(0)
    return tuple(
        g.to(input.dtype).contiguous() if need else input.new_empty(0) for g, need in zip(grads, needs, strict=True)
    )


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    chunk_rows: int,
    precision: str,
    batch_invariant: bool,
    float32_loss: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    logits, flat = _logits(input, weight, bias), target.reshape(-1)
    options = ignore_index, reduction, label_smoothing, z_loss, softcap
    loss, lse, mass, total = losses.cross_entropy(logits, flat, None, *options, True)
    of_loss = torch.ones_like(loss)
    of_logits = losses.cross_entropy_backward(of_loss, logits, flat, None, lse, mass, total, *options, True, False)[0]
    if reduction == "none":
        loss, needs = loss.view(target.shape), (False,) * 3
    loss = loss if float32_loss else loss.to(input.dtype)
    return loss, lse, total, *_grads(of_logits, input, weight, needs)


def linear_cross_entropy_backward(
    grad_loss: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    total: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    chunk_rows: int,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    logits, flat = _logits(input, weight, bias), target.reshape(-1)
    grad = grad_loss.reshape(-1) if reduction == "none" else grad_loss
    options = ignore_index, reduction, label_smoothing, z_loss, softcap
    mass = lse.new_empty(0)
    of_logits = losses.cross_entropy_backward(grad, logits, flat, None, lse, mass, total, *options, True, False)[0]
    return _grads(of_logits, input, weight, needs)


def linear_loss_backward(grad_loss: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
    acc = acc_dtype(grads[0].dtype)
    return tuple((grad_loss.to(acc) * grad.to(acc)).to(grad.dtype).contiguous() for grad in grads)
