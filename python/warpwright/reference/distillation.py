"""Definitions of the losses that teach one model by another."""

from __future__ import annotations

from torch import Tensor

from warpwright.reference._linear_loss import grads_of, logits_of


def _log_probabilities(input: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """(rows, classes)"""
    return (logits_of(input, weight, bias) / temperature).log_softmax(-1)


def _divisor(log_q: Tensor, reduction: str) -> int:
    return {"batchmean": log_q.shape[0], "mean": log_q.numel()}.get(reduction, 1)


def linear_kl_div(
    input: Tensor,
    weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    bias: Tensor | None,
    teacher_bias: Tensor | None,
    temperature: float,
    reduction: str,
    chunk_rows: int | None,
    precision: str,
    batch_invariant: bool,
    float32_loss: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    log_q = _log_probabilities(input, weight, bias, temperature)
    log_p = _log_probabilities(teacher_input, teacher_weight, teacher_bias, temperature)
    loss = (log_p.exp() * (log_p - log_q)).sum(-1)
    if reduction == "none":
        loss, needs = loss.view(input.shape[:-1]), (False,) * 3
    else:
        loss = loss.sum() / _divisor(log_q, reduction)
    of_logits = (log_q.exp() - log_p.exp()) / temperature / _divisor(log_q, reduction)
    loss = loss if float32_loss else loss.to(input.dtype)
    return loss, *grads_of(of_logits, input, weight, needs)


def linear_kl_div_backward(
    grad_loss: Tensor,
    input: Tensor,
    weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    bias: Tensor | None,
    teacher_bias: Tensor | None,
    temperature: float,
    reduction: str,
    chunk_rows: int | None,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    log_q = _log_probabilities(input, weight, bias, temperature)
    log_p = _log_probabilities(teacher_input, teacher_weight, teacher_bias, temperature)
    grad = grad_loss.reshape(-1, 1) if reduction == "none" else grad_loss
    scale = grad.to(log_q.dtype) / temperature / max(_divisor(log_q, reduction), 1)
    return grads_of(scale * (log_q.exp() - log_p.exp()), input, weight, needs)
