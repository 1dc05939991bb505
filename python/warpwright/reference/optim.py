"""Definitions of the optim family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype


def adamw_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    masters: list[Tensor],
    steps: list[Tensor],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    for i, (param, grad, exp_avg, exp_avg_sq) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        acc = acc_dtype(param.dtype)
        g = grad.to(acc) if grad_scale is None else grad.to(acc) / grad_scale
        g = -g if maximize else g
        step = steps[i].to(torch.float64)
        step_size = (lr / (1 - beta1**step)).to(acc)
        correction = (1 - beta2**step).sqrt().to(acc)
        x = masters[i] if masters else param.to(acc)
        m = exp_avg.to(acc) + (g - exp_avg) * (1 - beta1)
        v = exp_avg_sq.to(acc) * beta2 + g * g * (1 - beta2)
        x = x * (1 - lr * weight_decay) - step_size * m / (v.sqrt() / correction + eps)
        written = [(param, x), (exp_avg, m), (exp_avg_sq, v)] + ([(masters[i], x)] if masters else [])
        for old, new in written:
            old.copy_(new if found_inf is None else torch.where(found_inf != 0, old.to(acc), new))
