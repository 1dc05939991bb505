"""Definitions of the stages of a batch norm whose batch is spread over several processes."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype
from warpwright.reference.channel_norm import affine, gradients, mean_of, placed, planes, spread


def batch_norm_moments(input: Tensor) -> Tensor:
    x = planes(input)
    count = x[:, :1].numel()
    if count == 0:
        return x.new_zeros(3, x.shape[1])
    mean = mean_of(x, (0, 2))
    var = ((x - spread(mean, input)) ** 2).mean((0, 2))
    return torch.stack((mean, var, torch.full_like(mean, count)))


def batch_norm_join(
    moments: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    means, variances, counts = moments.unbind(1)
    elements = counts.sum(0)

    def average(values: Tensor) -> Tensor:
        return torch.where(counts > 0, counts * values, 0).sum(0) / elements

    rough = average(means)
    mean = rough + average(means - rough)
    var = average(variances + (means - mean) ** 2)

    def moved(running: Tensor | None, found: Tensor) -> Tensor:
        if running is None:
            return moments.new_empty(0)
        old = running.to(moments.dtype)
        return torch.where(elements > 0, (1 - momentum) * old + momentum * found, old).to(running.dtype)

    unbiased = var * (elements / (elements - 1))
    return mean, var, elements, moved(running_mean, mean), moved(running_var, unbiased)


def batch_norm_sums(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
) -> Tensor:
    g, xhat = gradients(grad_output, input, weight, bias, residual, mean, rstd, activation)
    return torch.stack((g.sum((0, 2)), (g * xhat).sum((0, 2))))


def batch_norm_input_grad(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    elements: Tensor,
    activation: str,
    need_input: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor]:
    g, xhat = gradients(grad_output, input, weight, bias, residual, mean, rstd, activation)
    nothing = input.new_empty(0)
    mean_grad, mean_dot = (spread(total / elements, input) for total in sums.to(acc_dtype(input.dtype)))
    grad_input = affine(g - mean_grad - xhat * mean_dot, weight, None) * spread(rstd, input)
    return (
        placed(grad_input, input) if need_input else nothing,
        placed(g, input) if need_residual else nothing,
    )
