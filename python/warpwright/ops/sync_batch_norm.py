"""Batch norm of a batch that is spread over the processes of a torch.distributed group, and its stages.

A process's moments are exchanged in the forward pass, its sums in the backward pass: 3 and 2 numbers a channel. What is
normalised with them is what batch_norm's own kernels do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._channels import (
    cast_tensors,
    check_batch_norm_grads,
    check_norm_activation,
    check_norm_input,
    check_statistics,
    empty_like,
    move_running,
)
from warpwright._check import (
    acc_dtype,
    check_float,
    check_same_device,
    check_same_dtype,
    require,
    shape_text,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: Weight and bias, each where there is one.
Affine = tuple[Tensor | None, Tensor | None]
#: Mean, rstd and number of elements of each channel, over all processes.
Statistics = tuple[Tensor, Tensor, Tensor]


# ---- the stages ----


def batch_norm_moments(input: Tensor) -> Tensor:
    """Mean, variance and number of each channel's elements, for `batch_norm_join`.

    Args:
        input: (batch, channels, ...), float32, float16, bfloat16 (float64 on the CPU), any strides.

    Returns:
        (3, channels), float32 (float64 for float64); zeros where there are no elements. The variance is biased, from
        the differences to the mean.

    Raises:
        RuntimeError: naming the argument whose dtype or rank does not fit.

    Not differentiable by itself: see `batch_norm_input_grad`. Bitwise the same from run to run.
    """
    return call("batch_norm_moments", input)


def batch_norm_join(
    moments: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, momentum: float = 0.1
) -> tuple[Tensor, Tensor, Tensor]:
    """The moments of several batches together, and running statistics moved towards them.

    Args:
        moments: (processes, 3, channels), float32 or float64: what `batch_norm_moments` gives for each.
        running_mean, running_var: (channels,), float32, float16 or bfloat16 (float64 for float64), both of one dtype.
            None, or written to: they move towards mean and unbiased variance by `momentum`; where no batch has elements
            they stay.
        momentum: the share of the batches in the running statistics.

    Returns:
        Mean, biased variance and number of elements, each (channels,) in the dtype of moments: what `batch_norm` takes
        for running statistics when not training, and `batch_norm_input_grad` for elements.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit.

    Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """
    running = (running_mean, running_var)
    mean, var, elements, *moved = call("batch_norm_join", moments, *running, momentum)
    move_running(running, moved)
    return mean, var, elements


def batch_norm_sums(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Each channel's sums of the gradient of what goes into the activation, and of that times the normalised input.

    Args:
        grad_output: like input.
        input, weight, bias, residual, activation: as in `batch_norm`.
        mean, rstd: (channels,), what input was normalised with, float32 (float64 for float64).

    Returns:
        (2, channels), float32 (float64 for float64): the gradients of bias and weight, and what the batches add up for
        `batch_norm_input_grad`.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit.

    Bitwise the same from run to run.
    """
    return call("batch_norm_sums", grad_output, input, weight, bias, residual, mean, rstd, activation or "none")


def batch_norm_input_grad(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    sums: Tensor,
    elements: Tensor,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """The gradient of a batch's input where mean and variance were those of several batches.

    Args:
        grad_output, input, weight, bias, mean, rstd, residual, activation: as in `batch_norm_sums`.
        sums: (2, channels), what `batch_norm_sums` gives for the batches, added up.
        elements: (channels,), over how many elements: `batch_norm_join`'s.

    Returns:
        In input's dtype, shape and memory format.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit.
    """
    name = activation or "none"
    args = (grad_output, input, weight, bias, residual, mean, rstd, sums, elements, name, True, False)
    return call("batch_norm_input_grad", *args)[0]


# ---- between them ----


def spans_processes(group: ProcessGroup) -> bool:
    return dist.get_world_size(group) > 1


def _gathered(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """(processes, *shape)."""
    processes, (first, *rest) = dist.get_world_size(group), tensor.shape
    found = tensor.new_empty((processes * first, *rest))
    # Its name from torch 2.13 on, and before.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(found, tensor, group=group)
    return found.view(processes, first, *rest)


def joined_norm(
    moments: Tensor,
    input: Tensor,
    running: Sequence[Tensor | None],
    affine: Affine,
    residual: Tensor | None,
    momentum: float,
    eps: float,
    activation: str,
    group: ProcessGroup,
) -> tuple[Tensor, Statistics, tuple[Tensor, Tensor]]:
    """Normalises `input` with all processes' statistics; also returns those, and what the running ones become."""
    mean, var, elements, *moved = call("batch_norm_join", _gathered(moments, group), *running, momentum)
    output, mean, rstd, _, _ = call("batch_norm", input, mean, var, *affine, residual, False, 0.0, eps, activation)
    return output, (mean, rstd, elements), (moved[0], moved[1])


def joined_norm_grads(
    grad: Tensor,
    input: Tensor,
    affine: Affine,
    residual: Tensor | None,
    statistics: Statistics,
    activation: str,
    need: Sequence[bool],
    group: ProcessGroup,
) -> list[Tensor | None]:
    """Of input, weight, bias and residual, as far as each is needed."""
    mean, rstd, elements = statistics
    need_input, need_weight, need_bias, need_residual = need
    args = (grad, input, *affine, residual, mean, rstd)
    grads: list[Tensor | None] = [None] * 4
    sums = mean.new_empty(2, mean.numel())
    if need_input or need_weight or need_bias:
        sums = call("batch_norm_sums", *args, activation)
        for place, needed, values, like in ((1, need_weight, sums[1], affine[0]), (2, need_bias, sums[0], affine[1])):
            if needed and like is not None:
                grads[place] = values.to(like.dtype, copy=True)
    if need_input:
        dist.all_reduce(sums, group=group)
    # Without an activation what was added has the output's own gradient.
    added = need_residual and activation != "none"
    if need_input or added:
        found = call("batch_norm_input_grad", *args, sums, elements, activation, need_input, added)
        grads[0], grads[3] = found[0] if need_input else None, found[1] if added else None
    if need_residual and not added:
        grads[3] = grad
    return grads


class _SyncBatchNorm(torch.autograd.Function):
    """No operator of a library: the exchange is torch.distributed's."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        momentum: float,
        eps: float,
        activation: str,
        group: ProcessGroup,
    ) -> tuple[Tensor, ...]:
        moments = call("batch_norm_moments", input)
        output, statistics, moved = joined_norm(
            moments, input, (running_mean, running_var), (weight, bias), residual, momentum, eps, activation, group
        )
        ctx.mark_non_differentiable(*moved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, bias, None if activation == "none" else residual, *statistics)
        ctx.activation, ctx.group = activation, group
        return output, *moved

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 10
        input, weight, bias, residual, *statistics = ctx.saved_tensors
        need = [ctx.needs_input_grad[i] for i in (0, 3, 4, 5)]
        found = joined_norm_grads(
            grad, input, (weight, bias), residual, tuple(statistics), ctx.activation, need, ctx.group
        )
        return found[0], None, None, *found[1:], None, None, None, None


_cast = cast_tensors(0, 5)


def under_autocast(rule: _registry.AutocastRule, *args: Any) -> tuple[Any, ...]:
    """The arguments as an operator with this rule would take them under the autocast that is on, if any."""
    kind = args[0].device.type
    if not torch.is_autocast_enabled(kind):
        return args
    return rule(args, torch.get_autocast_dtype(kind))


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    momentum: float,
    eps: float,
    activation: str,
    group: ProcessGroup,
) -> Tensor:
    """batch_norm in training over the processes of `group`."""
    args = under_autocast(_cast, input, running_mean, running_var, weight, bias, residual)
    output, *moved = _SyncBatchNorm.apply(*args, momentum, eps, activation, group)
    move_running((running_mean, running_var), moved)
    return output


# ---- argument checks, in the words of csrc/bindings/sync_batch_norm.cpp ----


def _check_moments(input: Tensor) -> None:
    check_norm_input("batch_norm_moments", input)


def _check_join(moments: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float) -> None:
    op = "batch_norm_join"
    check_float(op, "moments", moments)
    dtype = moments.dtype
    require(dtype == acc_dtype(dtype), op, f"moments must be float32 or float64, got {dtype}")
    message = f"moments must have shape (processes, 3, channels), got {shape_text(moments.shape)}"
    require(moments.dim() == 3 and moments.shape[1] == 3, op, message)
    wide = dtype == torch.float64
    for name, tensor in {"running_mean": running_mean, "running_var": running_var}.items():
        if tensor is None:
            continue
        check_same_device(op, name, tensor, "moments", moments)
        message = f"{name} must be {'float64' if wide else 'float32, float16 or bfloat16'}, got {tensor.dtype}"
        require(tensor.dtype == dtype or (not wide and tensor.dtype in (torch.float16, torch.bfloat16)), op, message)
        channels = (moments.shape[2],)
        message = f"{name} must have shape {shape_text(channels)}, got {shape_text(tensor.shape)}"
        require(tuple(tensor.shape) == channels, op, message)
    if running_mean is not None and running_var is not None:
        check_same_dtype(op, "running_var", running_var, "running_mean", running_mean)


def _check_sums(*args: Any) -> None:
    op, *tensors, activation = "batch_norm_sums", *args
    check_batch_norm_grads(op, *tensors)
    check_norm_activation(op, activation)


def _check_input_grad(*args: Any) -> None:
    op = "batch_norm_input_grad"
    *tensors, sums, elements, activation, _, _ = args
    check_batch_norm_grads(op, *tensors)
    input, channels = tensors[1], tensors[1].shape[1]
    message = f"sums must have shape {shape_text((2, channels))}, got {shape_text(sums.shape)}"
    require(sums.dim() == 2 and sums.shape[0] == 2, op, message)
    check_statistics(op, "sums", sums, input, 2 * channels)
    check_statistics(op, "elements", elements, input, channels)
    check_norm_activation(op, activation)


# ---- definitions ----


def _fake_join(
    moments: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> tuple[Tensor, ...]:
    channels = moments.shape[2]
    moved = (moments.new_empty(0) if t is None else t.new_empty(channels) for t in (running_mean, running_var))
    return *(moments.new_empty(channels) for _ in range(3)), *moved


def _fake_input_grad(grad: Tensor, input: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(empty_like(input) if needed else input.new_empty(0) for needed in rest[-2:])


_FAMILY = "sync_batch_norm"
_registry.define(
    "batch_norm_moments",
    family=_FAMILY,
    check=_check_moments,
    fake=lambda input: input.new_empty((3, input.shape[1]), dtype=acc_dtype(input.dtype)),
)
_registry.define("batch_norm_join", family=_FAMILY, check=_check_join, fake=_fake_join)
_registry.define(
    "batch_norm_sums",
    family=_FAMILY,
    check=_check_sums,
    fake=lambda grad, input, *rest: input.new_empty((2, input.shape[1]), dtype=acc_dtype(input.dtype)),
)
_registry.define("batch_norm_input_grad", family=_FAMILY, check=_check_input_grad, fake=_fake_input_grad)
