"""Definitions of the channel norms: group_norm and batch_norm, on which instance_norm stands."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._channels import lies_channels_last
from warpwright._check import acc_dtype, count_of
from warpwright.reference._activation import activate, activation_grad


def placed(value: Tensor, input: Tensor) -> Tensor:
    """In input's shape, dtype and memory format."""
    value = value.reshape(input.shape).to(input.dtype)
    if not lies_channels_last(input):
        return value.contiguous()
    return value.movedim(1, -1).contiguous().movedim(-1, 1)


def _over_channels(values: Tensor | None, like: Tensor) -> Tensor | None:
    """One value a channel, against a tensor (batch, channels, positions)."""
    return None if values is None else values.to(like.dtype)[None, :, None]


def planes(tensor: Tensor) -> Tensor:
    """(batch, channels, positions), in the dtype that it is computed in; contiguous, so that sums have one order."""
    return tensor.to(acc_dtype(tensor.dtype)).contiguous().reshape(*tensor.shape[:2], count_of(tensor.shape[2:]))


def mean_of(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """With the digits that a sum of large numbers would cost it."""
    rough = values.mean(dims, keepdim=True)
    return (rough + (values - rough).mean(dims, keepdim=True)).squeeze(dims)


def affine(xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    factor, term = _over_channels(weight, xhat), _over_channels(bias, xhat)
    scaled = xhat if factor is None else xhat * factor
    return scaled if term is None else scaled + term


def spread(cells: Tensor, input: Tensor) -> Tensor:
    """Statistics of groups (batch, groups), or of channels, against (batch, channels, positions)."""
    channels = input.shape[1]
    return cells.repeat_interleave(channels // max(cells.shape[-1], 1), -1).reshape(-1, channels, 1)


def gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """The gradient of what goes into the activation, and xhat."""
    xhat = (planes(input) - spread(mean, input)) * spread(rstd, input)
    z = affine(xhat, weight, bias)
    if residual is not None:
        z = z + planes(residual)
    return planes(grad_output) * activation_grad(activation, z), xhat


def _of_channels(values: Tensor, like: Tensor | None, input: Tensor, needed: bool) -> Tensor:
    """The sum over batch and positions, in the dtype of the parameter."""
    dtype = input.dtype if like is None else like.dtype
    return values.sum((0, 2)).to(dtype) if needed else input.new_empty(0, dtype=dtype)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    x = planes(input)
    groups = x.reshape(input.shape[0], num_groups, input[:1, : input.shape[1] // num_groups].numel())
    mean = mean_of(groups, (-1,))
    rstd = torch.rsqrt(((groups - mean[..., None]) ** 2).mean(-1) + eps)
    y = affine((x - spread(mean, input)) * spread(rstd, input), weight, bias)
    return placed(activate(activation, y), input), mean, rstd


def group_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (t.reshape(input.shape[0], num_groups) for t in (mean, rstd))
    g, xhat = gradients(grad_output, input, weight, bias, None, mean, rstd, activation)
    grad_input = input.new_empty(0)
    if need_input:
        scaled = affine(g, weight, None)

        def over_cells(values: Tensor) -> Tensor:
            return spread(values.reshape(*mean.shape, values[:1].numel() // num_groups).mean(-1), input)

        centred = scaled - over_cells(scaled) - xhat * over_cells(scaled * xhat)
        grad_input = placed(centred * spread(rstd, input), input)
    grad_weight = _of_channels(g * xhat, weight, input, need_weight)
    return grad_input, grad_weight, _of_channels(g, bias, input, need_bias)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x = planes(input)
    if training:
        mean = mean_of(x, (0, 2))
        var = ((x - spread(mean, input)) ** 2).mean((0, 2))
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, var = (t.to(x.dtype).clone() for t in (running_mean, running_var))

    def moved(running: Tensor | None, found: Tensor) -> Tensor:
        if running is None or not training:
            return x.new_empty(0)
        return ((1 - momentum) * running.to(x.dtype) + momentum * found).to(running.dtype)

    count = input[:, :1].numel()
    new_mean, new_var = moved(running_mean, mean), moved(running_var, var * count / max(count - 1, 1))
    rstd = torch.rsqrt(var + eps)
    y = affine((x - spread(mean, input)) * spread(rstd, input), weight, bias)
    if residual is not None:
        y = y + planes(residual)
    return placed(activate(activation, y), input), mean, rstd, new_mean, new_var


def batch_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    training: bool,
    activation: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g, xhat = gradients(grad_output, input, weight, bias, residual, mean, rstd, activation)
    grad_input = input.new_empty(0)
    if need_input:
        scaled = affine(g, weight, None)
        if training:
            scaled = scaled - scaled.mean((0, 2), keepdim=True) - xhat * (scaled * xhat).mean((0, 2), keepdim=True)
        grad_input = placed(scaled * spread(rstd, input), input)
    grad_weight = _of_channels(g * xhat, weight, input, need_weight)
    grad_bias = _of_channels(g, bias, input, need_bias)
    return grad_input, grad_weight, grad_bias, placed(g, input) if need_residual else input.new_empty(0)
