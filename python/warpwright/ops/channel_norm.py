"""Norms of tensors (batch, channels, ...): over groups of channels, the batch, or a channel of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from warpwright import _registry, distributed
from warpwright._backend import call
from warpwright._channels import (
    cast_tensors,
    check_batch_norm_grads,
    check_channels,
    check_norm_activation,
    check_norm_input,
    check_statistics,
    empty_like,
    move_running,
)
from warpwright._check import acc_dtype, check_float, check_like, count_of, require, shape_text
from warpwright.ops.sync_batch_norm import spans_processes, sync_batch_norm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Tensor:
    """Group norm: `activation((x - mean) / sqrt(var + eps) * weight + bias)`, mean and variance of each group of
    channels of each sample.

    Args:
        input: (batch, channels, ...), float32, float16, bfloat16 (float64 on the CPU), NCHW, channels_last or any other
            strides.
        num_groups: divides the channels.
        weight: (channels,), input's dtype or float32, or None for ones.
        bias: (channels,), input's dtype or float32, or None for zeros.
        eps: added to the variance.
        activation: None, "relu" or "silu", by the same kernel.

    Returns:
        In input's dtype, shape and memory format.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit.

    Accumulates in float32 (float64 for float64), the variance from the differences to the mean, so a large mean costs
    no digits. Differentiable in input, weight and bias; bitwise the same from run to run, and for a sample whatever
    else is in the batch.

    Source: Wu and He, "Group Normalization", 2018.
    """
    return call("group_norm", input, num_groups, weight, bias, eps, activation or "none")[0]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Batch norm: `activation((x - mean) / sqrt(var + eps) * weight + bias + residual)`, mean and variance of each
    channel.

    Args:
        input: (batch, channels, ...), float32, float16, bfloat16 (float64 on the CPU), NCHW, channels_last or any other
            strides.
        running_mean, running_var: (channels,), input's dtype or float32. In training None, or written to: they move
            towards the batch's mean and unbiased variance by `momentum`. Else what is normalised with.
        weight: (channels,), input's dtype or float32, or None for ones.
        bias: (channels,), input's dtype or float32, or None for zeros.
        training: take the batch's mean and variance.
        momentum: the share of the batch in the running statistics.
        eps: added to the variance.
        residual: like input, added before the activation.
        activation: None, "relu" or "silu", by the same kernel.
        process_group: in training, mean and variance are those of the batches of all processes of this
            torch.distributed group, which all call this, with any batch sizes, none included. None for this process's.

    Returns:
        In input's dtype, shape and memory format.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit; in training, one value a channel
            (not over a process group: there the running variance becomes infinite or not a number).

    Accumulates in float32 (float64 for float64), the variance from the differences to the mean, so a large mean costs
    no digits. Differentiable in input, weight, bias and residual; bitwise the same from run to run. Over a process
    group the gradients of weight and bias are those of this process's batch, for data parallel training to sum up.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015.
    """
    name = activation or "none"
    running = (running_mean, running_var)
    if training and distributed.is_cut(input, 0):
        from warpwright.distributed import _local

        return _local.batch_norm(cast(Any, input), running, (weight, bias), momentum, eps, residual, name)
    if training and process_group is not None and spans_processes(process_group):
        return sync_batch_norm(input, *running, weight, bias, residual, momentum, eps, name, process_group)
    output, _, _, *moved = call("batch_norm", input, *running, weight, bias, residual, training, momentum, eps, name)
    if training and input.numel() > 0:
        move_running(running, moved)
    return output


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance norm: `(x - mean) / sqrt(var + eps) * weight + bias`, mean and variance of each channel of each sample.

    Args:
        input: (batch, channels, ...), float32, float16, bfloat16 (float64 on the CPU), NCHW, channels_last or any other
            strides.
        running_mean, running_var: (channels,), input's dtype or float32. With use_input_stats None, or written to: they
            move towards the samples' average mean and unbiased variance by `momentum`. Else what is normalised with.
        weight: (channels,), input's dtype or float32, or None for ones.
        bias: (channels,), input's dtype or float32, or None for zeros.
        use_input_stats: take each sample's mean and variance.
        momentum: the share of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        In input's dtype, shape and memory format.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit; with use_input_stats, one value a
            channel and sample.

    Accumulates and differentiates as group_norm, which it is with as many groups as channels.

    Source: Ulyanov, Vedaldi and Lempitsky, "Instance Normalization", 2016.
    """
    check_float("instance_norm", "input", input)
    require(input.dim() >= 2, "instance_norm", f"input must have at least 2 dimensions, got {input.dim()}")
    for name, tensor in {"weight": weight, "bias": bias}.items():
        check_channels("instance_norm", name, tensor, input, input.shape[1])
    if not use_input_stats:
        missing = running_mean is None or running_var is None
        require(not missing, "instance_norm", "running_mean and running_var must be given without use_input_stats")
        for name, tensor in {"running_mean": running_mean, "running_var": running_var}.items():
            check_channels("instance_norm", name, tensor, input, input.shape[1])
        running = (running_mean, running_var)
        return call("batch_norm", input, *running, weight, bias, None, False, momentum, eps, "none")[0]
    count = count_of(input.shape[2:])
    message = f"input must have more than one value per channel and sample, got shape {shape_text(input.shape)}"
    require(count != 1, "instance_norm", message)
    output, mean, rstd = call("group_norm", input, max(input.shape[1], 1), weight, bias, eps, "none")
    if input.numel() > 0 and (running_mean is not None or running_var is not None):
        var = (rstd**-2 - eps).clamp_min(0).mean(0)
        _move("running_mean", running_mean, mean.mean(0), momentum)
        _move("running_var", running_var, var * (count / (count - 1)), momentum)
    return output


@torch.no_grad()
def _move(name: str, running: Tensor | None, found: Tensor, momentum: float) -> None:
    if running is None:
        return
    message = f"{name} must have shape {shape_text(found.shape)}, got {shape_text(running.shape)}"
    require(running.shape == found.shape, "instance_norm", message)
    running.lerp_(found.to(running.dtype), momentum)


# ---- argument checks, in the words of csrc/bindings/channel_norm.cpp ----


def _check_groups(op: str, input: Tensor, groups: int) -> None:
    message = f"num_groups must divide the {input.shape[1]} channels of input, got {groups}"
    require(groups >= 1 and input.shape[1] % groups == 0, op, message)


def _check_group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str
) -> None:
    op = "group_norm"
    check_norm_input(op, input)
    _check_groups(op, input, num_groups)
    check_channels(op, "weight", weight, input, input.shape[1])
    check_channels(op, "bias", bias, input, input.shape[1])
    check_norm_activation(op, activation)


def _check_group_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
    *needs: bool,
) -> None:
    op = "group_norm_backward"
    check_norm_input(op, input)
    _check_groups(op, input, num_groups)
    check_like(op, "grad_output", grad_output, "input", input)
    check_channels(op, "weight", weight, input, input.shape[1])
    check_channels(op, "bias", bias, input, input.shape[1])
    check_statistics(op, "mean", mean, input, input.shape[0] * num_groups)
    check_statistics(op, "rstd", rstd, input, input.shape[0] * num_groups)
    check_norm_activation(op, activation)


def _check_batch_norm(
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
) -> None:
    op = "batch_norm"
    check_norm_input(op, input)
    given = training or (running_mean is not None and running_var is not None)
    require(given, op, "running_mean and running_var must be given unless training")
    channels = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, tensor in channels.items():
        check_channels(op, name, tensor, input, input.shape[1])
    if residual is not None:
        check_like(op, "residual", residual, "input", input)
    check_norm_activation(op, activation)
    single = training and input.numel() == input.shape[1] and input.shape[1] > 0
    message = f"input must have more than one value per channel in training, got shape {shape_text(input.shape)}"
    require(not single, op, message)


def _check_batch_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    training: bool,
    activation: str,
    *needs: bool,
) -> None:
    op = "batch_norm_backward"
    check_batch_norm_grads(op, grad_output, input, weight, bias, residual, mean, rstd)
    check_norm_activation(op, activation)


# ---- fake outputs ----


def _fake_statistics(input: Tensor, *shape: int) -> Tensor:
    return input.new_empty(shape, dtype=acc_dtype(input.dtype))


def _fake_like(input: Tensor, needed: bool) -> Tensor:
    return empty_like(input) if needed else input.new_empty(0)


def _fake_channels(input: Tensor, like: Tensor | None, needed: bool) -> Tensor:
    return (input if like is None else like).new_empty(input.shape[1] if needed else 0)


def fake_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    training: bool,
    *rest: Any,
) -> tuple[Tensor, ...]:
    channels = input.shape[1]
    statistics = [_fake_statistics(input, channels) for _ in ("mean", "rstd")]
    moved = [
        _fake_statistics(input, 0) if t is None or not training else t.new_empty(channels)
        for t in (running_mean, running_var)
    ]
    return empty_like(input), *statistics, *moved


# ---- autograd ----


def _setup_group_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, ctx.num_groups, weight, bias, _, ctx.activation = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(input, weight, bias, mean, rstd)


def _backward_group_norm(ops: Any, ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    input, weight, bias, mean, rstd = ctx.saved_tensors
    need = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    grads = ops.group_norm_backward(grad, input, ctx.num_groups, weight, bias, mean, rstd, ctx.activation, *need)
    grad_input, grad_weight, grad_bias = (g if n else None for g, n in zip(grads, need, strict=True))
    return grad_input, None, grad_weight, grad_bias, None, None


def _setup_batch_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, _, _, weight, bias, residual, ctx.training, _, _, ctx.activation = inputs
    _, mean, rstd, new_mean, new_var = output
    ctx.mark_non_differentiable(mean, rstd, new_mean, new_var)
    # Without an activation the gradients do not depend on what was added.
    added = None if ctx.activation == "none" else residual
    ctx.save_for_backward(input, weight, bias, added, mean, rstd)


def batch_norm_grads(
    ops: Any,
    grad: Tensor,
    input: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    residual: Tensor | None,
    statistics: tuple[Tensor, Tensor],
    training: bool,
    activation: str,
    need: Sequence[bool],
) -> list[Tensor | None]:
    """Of input, weight, bias and residual, as far as each is needed. `residual` is given with an activation."""
    plain = activation == "none"
    grads = ops.batch_norm_backward(
        grad, input, *affine, residual, *statistics, training, activation, *need[:3], need[3] and not plain
    )
    found = [g if n else None for g, n in zip(grads, need, strict=True)]
    if need[3] and plain:
        found[3] = grad
    return found


def _backward_batch_norm(ops: Any, ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    input, weight, bias, residual, mean, rstd = ctx.saved_tensors
    need = [ctx.needs_input_grad[i] for i in (0, 3, 4, 5)]
    found = batch_norm_grads(
        ops, grad, input, (weight, bias), residual, (mean, rstd), ctx.training, ctx.activation, need
    )
    return found[0], None, None, *found[1:], None, None, None, None


# ---- definitions ----

_registry.define(
    "group_norm",
    family="channel_norm",
    check=_check_group_norm,
    fake=lambda input, groups, *rest: (
        empty_like(input),
        _fake_statistics(input, input.shape[0], groups),
        _fake_statistics(input, input.shape[0], groups),
    ),
    setup_context=_setup_group_norm,
    backward=_backward_group_norm,
    autocast=cast_tensors(0),
)
_registry.define(
    "group_norm_backward",
    family="channel_norm",
    check=_check_group_norm_backward,
    fake=lambda grad, input, groups, weight, bias, mean, rstd, activation, need_input, need_weight, need_bias: (
        _fake_like(input, need_input),
        _fake_channels(input, weight, need_weight),
        _fake_channels(input, bias, need_bias),
    ),
)
_registry.define(
    "batch_norm",
    family="channel_norm",
    check=_check_batch_norm,
    fake=fake_batch_norm,
    setup_context=_setup_batch_norm,
    backward=_backward_batch_norm,
    autocast=cast_tensors(0, 5),
)
_registry.define(
    "batch_norm_backward",
    family="channel_norm",
    check=_check_batch_norm_backward,
    fake=lambda grad, input, weight, bias, residual, mean, rstd, training, activation, *need: (
        _fake_like(input, need[0]),
        _fake_channels(input, weight, need[1]),
        _fake_channels(input, bias, need[2]),
        _fake_like(input, need[3]),
    ),
)
