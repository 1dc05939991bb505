"""A convolution with its batch norm behind, as networks train them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._arithmetic import convolution_precision_of
from warpwright._backend import call
from warpwright._channels import cast_tensors, check_channels, check_norm_activation, move_running
from warpwright._check import acc_dtype, check_precision, require, shape_text
from warpwright._conv import channels_last, check_operands, check_output_like, empty_in_format, op_name, output_sizes
from warpwright.ops._epilogue import check_bias, wants_grad
from warpwright.ops.channel_norm import batch_norm_grads, fake_batch_norm
from warpwright.ops.conv import Numbers, check_rank, conv_geometry
from warpwright.ops.sync_batch_norm import joined_norm, joined_norm_grads, spans_processes, under_autocast

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def conv2d_batch_norm(
    input: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """`activation(batch_norm(conv2d(input, weight) + bias) + residual)`, mean and variance of each filter's results.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as in `conv2d`.
        running_mean, running_var: (filters,), input's dtype or float32. In training None, or written to: they move
            towards the batch's mean and unbiased variance by `momentum`. Else what is normalised with.
        bn_weight: (filters,), input's dtype or float32, or None for ones.
        bn_bias: (filters,), input's dtype or float32, or None for zeros.
        training: take the batch's mean and variance.
        momentum: the share of the batch in the running statistics.
        eps: added to the variance.
        residual: like the output, added before the activation.
        activation: None, "relu" or "silu", by the norm's kernel.
        process_group: as in `batch_norm`: in training, whose processes' batches give mean and variance.

    Returns:
        (batch, filters, out height, out width) in input's dtype, channels_last when input or weight lies so.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit; in training, one value
            a channel (not over a process group).

    The convolution's result is rounded to input's dtype and kept for the backward pass. Where there is none to come and
    the statistics are the running ones, the norm is part of the convolution's own kernel, and nothing is rounded
    between them; on the CPU it is folded into a float32 weight that is much smaller than the output, and else a pass of
    its own, in place. In training the kernels of the tensor cores and of Triton find the statistics of what they store
    while they have it, so that it is read once more, for the norm, and not twice; float32 on CUDA, groups of few
    channels, depthwise ones, and the CPU take batch_norm's own pass over it.

    Accumulates in float32 (float64 for float64), the variance from the differences to the mean, so a large mean costs
    no digits. Differentiable in input, weight, bias, bn_weight, bn_bias and residual, by batch_norm's two passes and
    then the convolution's; bitwise the same from run to run. In training the mean takes a bias out again: its gradient
    is zero, where PyTorch sums what rounding left.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015.
    """
    op = "conv2d_batch_norm"
    check_rank(op, 2, weight)
    geometry = conv_geometry(op, 2, weight, stride, padding, dilation)
    unbatched = input.dim() == 3
    if unbatched:
        input, residual = input.unsqueeze(0), residual if residual is None else residual.unsqueeze(0)
    running = (running_mean, running_var)
    name, precision = activation or "none", convolution_precision_of(input)
    if training and process_group is not None and spans_processes(process_group):
        args = under_autocast(_CAST, input, weight, bias, residual, *running, bn_weight, bn_bias)
        output, *moved = _SyncConvBatchNorm.apply(
            *args, (*geometry, groups), momentum, eps, name, precision, process_group
        )
        move_running(running, moved)
        return output.squeeze(0) if unbatched else output
    output, _, _, _, *moved = call(
        "convolution_batch_norm", input, weight, bias, residual, *running, bn_weight, bn_bias, *geometry, groups,
        training, momentum, eps, name, precision,
        training or wants_grad(input, weight, bias, residual, bn_weight, bn_bias),
    )  # fmt: skip
    if training and output.numel() > 0:
        move_running(running, moved)
    return output.squeeze(0) if unbatched else output


def conv2d_moments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """`conv2d`, and the `batch_norm_moments` of its result, found where `conv2d_batch_norm` finds them.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as in `conv2d`.

    Returns:
        (batch, filters, out height, out width) in input's dtype, and (3, filters), float32 (float64 for float64): mean,
        biased variance and number of each filter's results, as they are rounded.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit.

    Not differentiable by itself: see `batch_norm_input_grad`. Bitwise the same from run to run.
    """
    check_rank("conv2d_moments", 2, weight)
    geometry = conv_geometry("conv2d_moments", 2, weight, stride, padding, dilation)
    unbatched = input.dim() == 3
    output, moments = call(
        "convolution_moments", input.unsqueeze(0) if unbatched else input, weight, bias, *geometry, groups,
        convolution_precision_of(input),
    )  # fmt: skip
    return output.squeeze(0) if unbatched else output, moments


def _geometry(stride: list[int], padding: list[int], dilation: list[int], groups: int) -> tuple[Any, ...]:
    """The same as a convolution has it that may be transposed."""
    return stride, padding, dilation, False, [], groups


def _check(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    *rest: Any,
) -> None:
    """In the words of csrc/bindings/conv_batch_norm.cpp."""
    *numbers, training, _, _, activation, precision, _ = rest
    op, geometry = op_name(weight, False, "_batch_norm"), _geometry(*numbers)
    check_operands(op, input, weight, *geometry)
    sizes = output_sizes(op, input, weight, *geometry)
    batch, filters, *positions = sizes
    check_bias(op, "bias", bias, input, filters)
    if residual is not None:
        check_output_like(op, "residual", residual, input, sizes)
    given = training or (running_mean is not None and running_var is not None)
    require(given, op, "running_mean and running_var must be given unless training")
    channels = {"running_mean": running_mean, "running_var": running_var, "bn_weight": bn_weight, "bn_bias": bn_bias}
    for name, tensor in channels.items():
        check_channels(op, name, tensor, input, filters)
    check_norm_activation(op, activation)
    check_precision(op, precision)
    single = training and [batch, *positions] == [1] * (len(sizes) - 1) and filters > 0
    message = f"the output must have more than one value per channel in training, got shape {shape_text(sizes)}"
    require(not single, op, message)


def _fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    *numbers, training, _, _, _, _, save_product = rest
    sizes = output_sizes("convolution_batch_norm", input, weight, *_geometry(*numbers))
    product = empty_in_format(input, sizes, channels_last(input, weight))
    output, mean, rstd, *moved = fake_batch_norm(
        product, running_mean, running_var, bn_weight, bn_bias, residual, training
    )  # fmt: skip
    if not training and not save_product:
        product, mean, rstd = product.new_empty(0), mean.new_empty(0), rstd.new_empty(0)
    return output, product, mean, rstd, *moved


def _check_moments(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> None:
    """In the words of csrc/bindings/conv_batch_norm.cpp."""
    *numbers, precision = rest
    op = op_name(weight, False, "_moments")
    check_operands(op, input, weight, *_geometry(*numbers))
    _, filters, *_ = output_sizes(op, input, weight, *_geometry(*numbers))
    check_bias(op, "bias", bias, input, filters)
    check_precision(op, precision)


def _fake_moments(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    sizes = output_sizes("convolution_moments", input, weight, *_geometry(*rest[:-1]))
    moments = input.new_empty((3, sizes[1]), dtype=acc_dtype(input.dtype))
    return empty_in_format(input, sizes, channels_last(input, weight)), moments


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.activation, ctx.precision, save_product = inputs
    input, weight, bias, residual, *running, bn_weight, bn_bias = tensors[:8]
    *ctx.numbers, ctx.training, _, ctx.eps = tensors[8:]
    _, product, mean, rstd, *moved = output
    ctx.mark_non_differentiable(product, mean, rstd, *moved)
    # What was not saved is computed again in the backward pass.
    ctx.recompute = not ctx.training and not save_product
    # Without an activation the gradients do not depend on what was added.
    added = None if ctx.activation == "none" else residual
    again = (bias, *running) if ctx.recompute else ()
    ctx.save_for_backward(input, weight, product, bn_weight, bn_bias, added, mean, rstd, *again)


def _backward(ops: Any, ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    input, weight, product, *affine, residual, mean, rstd = ctx.saved_tensors[:8]
    if ctx.recompute:
        bias, *running = ctx.saved_tensors[8:]
        _, product, mean, rstd, _, _ = ops.convolution_batch_norm(
            input, weight, bias, None, *running, *affine, *ctx.numbers, False, 0.0, ctx.eps, "none", ctx.precision, True
        )  # fmt: skip
    need_input, need_weight, need_bias, need_residual, _, _, *need_affine = ctx.needs_input_grad[:8]
    need = [need_input, need_weight, need_bias]
    grad_product, *grad_affine, grad_residual = batch_norm_grads(
        ops, grad, product, tuple(affine), residual, (mean, rstd), ctx.training, ctx.activation,
        (_needs_product(need, ctx.training), *need_affine, need_residual),
    )  # fmt: skip
    found = _convolution_grads(ops.convolution_backward, ctx, grad_product, input, weight, need, ctx.training)
    return *found, grad_residual, None, None, *grad_affine, *[None] * 10


def _needs_product(need: list[bool], training: bool) -> bool:
    """Of input, weight and bias: what a bias adds to all of a channel's values, the batch's mean takes away."""
    return need[0] or need[1] or (need[2] and not training)


def _convolution_grads(
    convolution_backward: Callable[..., tuple[Tensor, ...]],
    ctx: Any,
    grad_product: Tensor | None,
    input: Tensor,
    weight: Tensor,
    need: list[bool],
    training: bool,
) -> list[Tensor | None]:
    """Of input, weight and bias, as far as each is needed; ctx has the convolution's `numbers` and `precision`."""
    found: list[Tensor | None] = [None, None, weight.new_zeros(weight.shape[0]) if need[2] else None]
    if _needs_product(need, training):
        wanted = (need[0], need[1], need[2] and not training)
        grads = convolution_backward(
            grad_product, input, weight, None, *_geometry(*ctx.numbers), "none", ctx.precision, *wanted, False
        )
        found = [g if n else f for g, n, f in zip(grads, wanted, found, strict=False)]
    return found


_CAST = cast_tensors(0, 1, 2, 3)


class _SyncConvBatchNorm(torch.autograd.Function):
    """In training over the processes of a group. No operator of a library: the exchange is torch.distributed's."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        bn_weight: Tensor | None,
        bn_bias: Tensor | None,
        numbers: tuple[Any, ...],
        momentum: float,
        eps: float,
        activation: str,
        precision: str,
        group: ProcessGroup,
    ) -> tuple[Tensor, ...]:
        product, moments = call("convolution_moments", input, weight, bias, *numbers, precision)
        running, affine = (running_mean, running_var), (bn_weight, bn_bias)
        output, statistics, moved = joined_norm(
            moments, product, running, affine, residual, momentum, eps, activation, group
        )
        ctx.mark_non_differentiable(*moved)
        ctx.set_materialize_grads(False)
        added = None if activation == "none" else residual
        ctx.save_for_backward(input, weight, product, bn_weight, bn_bias, added, *statistics)
        ctx.numbers, ctx.activation, ctx.precision, ctx.group = numbers, activation, precision, group
        return output, *moved

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 14
        input, weight, product, bn_weight, bn_bias, residual, *statistics = ctx.saved_tensors
        need_residual, _, _, *need_affine = ctx.needs_input_grad[3:8]
        need = list(ctx.needs_input_grad[:3])
        grad_product, *grad_affine, grad_residual = joined_norm_grads(
            grad, product, (bn_weight, bn_bias), residual, tuple(statistics), ctx.activation,
            (_needs_product(need, True), *need_affine, need_residual), ctx.group,
        )  # fmt: skip
        backward = partial(call, "convolution_backward")
        found = _convolution_grads(backward, ctx, grad_product, input, weight, need, True)
        return *found, grad_residual, None, None, *grad_affine, *[None] * 6


_registry.define(
    "convolution_batch_norm",
    family="conv_batch_norm",
    check=_check,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    autocast=_CAST,
)
_registry.define(
    "convolution_moments",
    family="conv_batch_norm",
    check=_check_moments,
    fake=_fake_moments,
    autocast=cast_tensors(0, 1, 2),
)
