"""Definitions of the cross entropy of a linear layer's output, and of what the losses behind one leave."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype
from warpwright.reference import loss as losses
from warpwright.reference._linear_loss import grads_of, logits_of


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    chunk_rows: int | None,
    precision: str,
    batch_invariant: bool,
    float32_loss: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    logits, flat = logits_of(input, weight, bias), target.reshape(-1)
    options = ignore_index, reduction, label_smoothing, z_loss, softcap
    loss, lse, mass, total = losses.cross_entropy(logits, flat, class_weight, *options, True)
    of_loss = torch.ones_like(loss)
    statistics = lse, mass, total
    of_logits, _ = losses.cross_entropy_backward(
        of_loss, logits, flat, class_weight, lse, mass, total, *options, True, False
    )
    if reduction == "none":
        loss, needs = loss.view(target.shape), (False,) * 3
    loss = loss if float32_loss else loss.to(input.dtype)
    return loss, *statistics, *grads_of(of_logits, input, weight, needs)


def linear_cross_entropy_backward(
    grad_loss: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    lse: Tensor,
    mass: Tensor,
    total: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    chunk_rows: int | None,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    logits, flat = logits_of(input, weight, bias), target.reshape(-1)
    grad = grad_loss.reshape(-1) if reduction == "none" else grad_loss
    options = ignore_index, reduction, label_smoothing, z_loss, softcap
    of_logits = losses.cross_entropy_backward(
        grad, logits, flat, class_weight, lse, mass, total, *options, True, False)[0]  # fmt: skip
    return grads_of(of_logits, input, weight, needs)


def linear_loss_backward(grad_loss: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
    acc = acc_dtype(grads[0].dtype)
    return tuple((grad_loss.to(acc) * grad.to(acc)).to(grad.dtype).contiguous() for grad in grads)
