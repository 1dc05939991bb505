"""Convolutions and transposed convolutions of one, two and three dimensions, with a fused epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from warpwright import _registry
from warpwright._arithmetic import convolution_precision_of
from warpwright._backend import call
from warpwright._check import (
    check_activation,
    check_precision,
    fail,
    needs_preact,
    require,
    shape_text,
)
from warpwright._conv import (
    channels_last,
    check_operands,
    check_output_like,
    empty_in_format,
    op_name,
    output_sizes,
    same_padding,
)
from warpwright.ops._epilogue import check_bias, check_saved, saved_of, wants_grad

Numbers = int | Sequence[int]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`activation(conv1d(input, weight) + bias + residual)`.

    Args:
        input: (batch, channels, length) or (channels, length).
        weight: (filters, channels / groups, kernel length).
        bias, stride, padding, dilation, groups, activation, residual: as in `conv2d`, of one dimension.

    Returns:
        (batch, filters, out length) in input's dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit.

    Layouts, accumulation and gradients are `conv2d`'s.
    """
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, activation, residual)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`activation(conv2d(input, weight) + bias + residual)`, the cross-correlation that PyTorch calls convolution.

    Args:
        input: (batch, channels, height, width) or (channels, height, width), float32, float16, bfloat16 (float64 on
            the CPU); NCHW, channels_last or any other strides, read in place.
        weight: (filters, channels / groups, kernel height, kernel width), input's dtype.
        bias: (filters), input's dtype, or None.
        stride, dilation: one number or (height, width), at least 1.
        padding: one number or (height, width), zeros on both sides; "valid" for none; "same" for an output as large as
            the input (stride 1 only; where the sides differ, the extra row or column goes to the end).
        groups: divides channels and filters; channels for a depthwise convolution.
        activation: as in `linear`.
        residual: like the output, added before the activation.

    Returns:
        (batch, filters, out height, out width) in input's dtype, channels_last when input or weight lies so.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit.

    Accumulates in float32 (float64 for float64); on a GPU `warpwright.float32_precision` chooses how float32 is
    multiplied. Differentiable in every tensor argument; bitwise the same from run to run. Where a gradient is wanted
    and the activation's derivative needs the pre-activation (all but relu), that is saved from the same pass. On the
    CPU, but for depthwise convolutions, "same" with an even kernel pads a copy of the input: the kernels there take
    padding that is alike on both sides.
    """
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, activation, residual)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`activation(conv3d(input, weight) + bias + residual)`.

    Args:
        input: (batch, channels, depth, height, width) or without batch; NCDHW, channels_last_3d or any other strides.
        weight: (filters, channels / groups, kernel depth, kernel height, kernel width).
        bias, stride, padding, dilation, groups, activation, residual: as in `conv2d`, of three dimensions.

    Returns:
        (batch, filters, out depth, out height, out width) in input's dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit.

    Layouts, accumulation and gradients are `conv2d`'s.
    """
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, activation, residual)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`activation(conv_transpose1d(input, weight) + bias + residual)`.

    Args:
        input: (batch, channels, length) or (channels, length).
        weight: (channels, filters / groups, kernel length).
        bias, stride, padding, output_padding, groups, dilation, activation, residual: as in `conv_transpose2d`.

    Returns:
        (batch, filters, out length) in input's dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit.
    """
    return _conv_transpose(
        1, input, weight, bias, stride, padding, output_padding, groups, dilation, activation, residual
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`activation(conv_transpose2d(input, weight) + bias + residual)`: the gradient of a convolution by its input.

    Args:
        input: (batch, channels, height, width) or without batch; dtypes and layouts as in `conv2d`.
        weight: (channels, filters / groups, kernel height, kernel width), input's dtype.
        bias: (filters), input's dtype, or None.
        stride, dilation: one number or one for each dimension, at least 1.
        padding: rows and columns that are cut off on both sides of the output, at least 0.
        output_padding: rows and columns more at the output's end, less than stride or dilation.
        groups: divides channels and filters.
        activation, residual: as in `conv2d`.

    Returns:
        (batch, filters, out height, out width) in input's dtype, channels_last when input or weight lies so; out size =
        (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit.

    Each output is written once, by the thread that gathers what reaches it: nothing is upsampled, no atomics.
    Differentiable in every tensor argument; bitwise the same from run to run.
    """
    return _conv_transpose(
        2, input, weight, bias, stride, padding, output_padding, groups, dilation, activation, residual
    )


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`activation(conv_transpose3d(input, weight) + bias + residual)`.

    Args:
        input: (batch, channels, depth, height, width) or without batch.
        weight: (channels, filters / groups, kernel depth, kernel height, kernel width).
        bias, stride, padding, output_padding, groups, dilation, activation, residual: as in `conv_transpose2d`.

    Returns:
        (batch, filters, out depth, out height, out width) in input's dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit.
    """
    return _conv_transpose(
        3, input, weight, bias, stride, padding, output_padding, groups, dilation, activation, residual
    )


# ---- from the public arguments to the operator's ----


def each(value: Numbers, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value)


def _conv(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Numbers,
    padding: Numbers | str,
    dilation: Numbers,
    groups: int,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    op = f"conv{dims}d"
    geometry = conv_geometry(op, dims, weight, stride, padding, dilation)
    return _convolution(op, dims, input, weight, bias, residual, (*geometry, False, [], groups), activation)


def conv_geometry(
    op: str, dims: int, weight: Tensor, stride: Numbers, padding: Numbers | str, dilation: Numbers
) -> tuple[list[int], list[int], list[int]]:
    """The operator's stride, padding and dilation."""
    strides, dilations = each(stride, dims), each(dilation, dims)
    if not isinstance(padding, str):
        paddings = each(padding, dims)
        # The operator takes both sides in one list; the public function does not.
        require(len(paddings) != 2 * dims, op, f"padding must have {dims} values, got {shape_text(paddings)}")
    elif padding == "valid":
        paddings = [0] * dims
    elif padding == "same":
        check_rank(op, dims, weight)
        paddings = same_padding(op, weight, strides, dilations)
    else:
        fail(op, f"padding must be numbers, 'same' or 'valid', got {padding!r}")
    return strides, paddings, dilations


def _conv_transpose(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Numbers,
    padding: Numbers,
    output_padding: Numbers,
    groups: int,
    dilation: Numbers,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    strides, paddings, ends, dilations = (each(v, dims) for v in (stride, padding, output_padding, dilation))
    geometry = (strides, paddings, dilations, True, ends, groups)
    return _convolution(f"conv_transpose{dims}d", dims, input, weight, bias, residual, geometry, activation)


def check_rank(op: str, dims: int, weight: Tensor) -> None:
    require(weight.dim() == dims + 2, op, f"weight must have {dims + 2} dimensions, got {weight.dim()}")


def _convolution(
    op: str,
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    geometry: tuple[Any, ...],
    activation: str | None,
) -> Tensor:
    check_rank(op, dims, weight)
    name = activation or "none"
    unbatched = input.dim() == dims + 1
    if unbatched:
        input, residual = input.unsqueeze(0), residual if residual is None else residual.unsqueeze(0)
    save_preact = needs_preact(name) and wants_grad(input, weight, bias, residual)
    settings = (name, convolution_precision_of(input), save_preact)
    output: Tensor = call("convolution", input, weight, bias, residual, *geometry, *settings)[0]
    return output.squeeze(0) if unbatched else output


# ---- the operator ----


def _check_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *rest: Any,
) -> None:
    *geometry, activation, precision, _ = rest
    op = op_name(weight, geometry[3])
    check_operands(op, input, weight, *geometry)
    sizes = output_sizes(op, input, weight, *geometry)
    check_activation(op, activation)
    check_precision(op, precision)
    check_bias(op, "bias", bias, input, sizes[1])
    if residual is not None:
        check_output_like(op, "residual", residual, input, sizes)


def _fake_convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    *geometry, activation, _, save_preact = rest
    sizes, last = output_sizes("convolution", input, weight, *geometry), channels_last(input, weight)
    keep = save_preact and needs_preact(activation)
    return empty_in_format(input, sizes, last), empty_in_format(input, sizes, last) if keep else input.new_empty(0)


def _setup_convolution(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, bias, residual, *geometry, activation, precision, _ = inputs
    result, preact = output
    ctx.mark_non_differentiable(preact)
    ctx.activation, ctx.precision, ctx.geometry = activation, precision, geometry
    saved = saved_of(activation, result, preact)
    # Without a saved pre-activation it is computed again in the backward pass, from the forward's own arguments.
    ctx.recompute = activation != "none" and saved is None
    ctx.save_for_backward(input, weight, saved, *((bias, residual) if ctx.recompute else ()))


def _backward_convolution(ops: Any, ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    input, weight, saved, *rest = ctx.saved_tensors
    if ctx.recompute:
        bias, residual = rest
        saved, _ = ops.convolution(input, weight, bias, residual, *ctx.geometry, "none", ctx.precision, False)
    needs = ctx.needs_input_grad[:4]
    settings = (ctx.activation, ctx.precision)
    grads = ops.convolution_backward(grad, input, weight, saved, *ctx.geometry, *settings, *needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), *[None] * 9)


def _check_convolution_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, saved: Tensor | None, *rest: Any
) -> None:
    *geometry, activation, precision, _, _, _, _ = rest
    op = op_name(weight, geometry[3], "_backward")
    check_operands(op, input, weight, *geometry)
    sizes = output_sizes(op, input, weight, *geometry)
    check_activation(op, activation)
    check_precision(op, precision)
    check_output_like(op, "grad_output", grad_output, input, sizes)
    check_saved(op, saved, activation, grad_output)


def _fake_convolution_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, saved: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_input, need_weight, need_bias, need_residual = rest[-4:]

    def like(tensor: Tensor, need: bool, *formats: Tensor) -> Tensor:
        return empty_in_format(tensor, tensor.shape, channels_last(*formats)) if need else input.new_empty(0)

    return (
        like(input, need_input, input),
        like(weight, need_weight, weight),
        weight.new_empty(grad_output.shape[1:2] if need_bias else (0,)),
        like(grad_output, need_residual, input, weight),
    )


_registry.define(
    "convolution",
    family="conv",
    check=_check_convolution,
    fake=_fake_convolution,
    setup_context=_setup_convolution,
    backward=_backward_convolution,
    autocast=_registry.cast_to_ambient,
)
_registry.define(
    "convolution_backward", family="conv", check=_check_convolution_backward, fake=_fake_convolution_backward
)
