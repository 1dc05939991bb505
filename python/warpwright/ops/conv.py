"""Convolutions with a fused epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import (
    check_activation,
    check_float,
    check_same_device,
    check_same_dtype,
    fail,
    needs_preact,
    require,
    shape_text,
)
from warpwright.ops._epilogue import check_saved, saved_of, wants_grad


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
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
            the input (stride 1 only; where the sides differ, the extra row or column goes to the end, which pads a
            copy of the input).
        groups: divides channels and filters; channels for a depthwise convolution.
        activation: as in `linear`.
        residual: like the output, added before the activation.

    Returns:
        (batch, filters, out height, out width) in input's dtype, channels_last when input or weight lies so.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit.

    Accumulates in float32 (float64 for float64). Differentiable in every tensor argument; bitwise the same from run to
    run. Where a gradient is wanted and the activation's derivative needs the pre-activation (all but relu), that is
    saved from the same pass.
    """
    name = activation or "none"
    if input.dim() == 3:
        addend = residual if residual is None else residual.unsqueeze(0)
        batched = conv2d(
            input.unsqueeze(0), weight, bias, stride, padding, dilation, groups, activation=activation, residual=addend
        )
        return batched.squeeze(0)
    pair_stride, pair_dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        input, pair_padding = _named_padding(input, weight, padding, pair_stride, pair_dilation)
    else:
        pair_padding = _pair(padding)
    save_preact = needs_preact(name) and wants_grad(input, weight, bias, residual)
    return call(
        "conv2d", input, weight, bias, residual, pair_stride, pair_padding, pair_dilation, groups, name, save_preact
    )[0]


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _named_padding(
    input: Tensor, weight: Tensor, padding: str, stride: list[int], dilation: list[int]
) -> tuple[Tensor, list[int]]:
    if padding == "valid":
        return input, [0, 0]
    if padding != "same":
        fail("conv2d", f"padding must be numbers, 'same' or 'valid', got {padding!r}")
    require(stride == [1, 1], "conv2d", f"padding 'same' needs stride 1, got {shape_text(stride)}")
    total = [d * (size - 1) for d, size in zip(dilation, weight.shape[-2:], strict=True)]
    odd_h, odd_w = (t % 2 for t in total)
    if odd_h or odd_w:
        input = F.pad(input, (0, odd_w, 0, odd_h))
    return input, [t // 2 for t in total]


def _channels_last(*tensors: Tensor) -> bool:
    return any(not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last) for t in tensors)


def _empty(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=layout)


def _check_pair(op: str, name: str, values: Sequence[int], least: int) -> None:
    require(len(values) == 2, op, f"{name} must have 2 values, got {shape_text(values)}")
    require(min(values) >= least, op, f"{name} must be at least {least}, got {shape_text(values)}")


def _output_sizes(
    op: str,
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[int, ...]:
    """Checks everything but the optional tensors; the shape of the output."""
    check_float(op, "input", input)
    dims = f"input must have 4 dimensions (batch, channels, height, width), got {input.dim()}"
    require(input.dim() == 4, op, dims)
    require(weight.dim() == 4, op, f"weight must have 4 dimensions, got {weight.dim()}")
    check_same_device(op, "weight", weight, "input", input)
    check_same_dtype(op, "weight", weight, "input", input)
    _check_pair(op, "stride", stride, 1)
    _check_pair(op, "padding", padding, 0)
    _check_pair(op, "dilation", dilation, 1)
    channels, filters = input.shape[1], weight.shape[0]
    divides = groups >= 1 and channels % groups == 0 and filters % groups == 0
    require(divides, op, f"groups must divide {channels} input channels and {filters} filters, got {groups}")
    message = f"weight has {weight.shape[1]} channels a group, input has {channels // groups}"
    require(weight.shape[1] == channels // groups, op, message)
    sizes = []
    for d in (0, 1):
        padded = input.shape[2 + d] + 2 * padding[d]
        reach = dilation[d] * (weight.shape[2 + d] - 1) + 1
        message = f"weight reaches over {reach} input elements, input with its padding has {padded}"
        require(weight.shape[2 + d] >= 1 and padded >= reach, op, message)
        sizes.append((padded - reach) // stride[d] + 1)
    return input.shape[0], filters, *sizes


def _check_output_like(op: str, name: str, tensor: Tensor, input: Tensor, sizes: tuple[int, ...]) -> None:
    check_same_device(op, name, tensor, "input", input)
    check_same_dtype(op, name, tensor, "input", input)
    message = f"{name} must have the shape of the output {shape_text(sizes)}, got {shape_text(tensor.shape)}"
    require(tuple(tensor.shape) == tuple(sizes), op, message)


def _check_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    save_preact: bool,
) -> None:
    op = "conv2d"
    sizes = _output_sizes(op, input, weight, stride, padding, dilation, groups)
    check_activation(op, activation)
    if bias is not None:
        check_same_device(op, "bias", bias, "input", input)
        check_same_dtype(op, "bias", bias, "input", input)
        expected = (weight.shape[0],)
        message = f"bias must have shape {shape_text(expected)}, got {shape_text(bias.shape)}"
        require(tuple(bias.shape) == expected, op, message)
    if residual is not None:
        _check_output_like(op, "residual", residual, input, sizes)


def _fake_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    sizes = _output_sizes("conv2d", input, weight, stride, padding, dilation, groups)
    last = _channels_last(input, weight)
    keep = save_preact and needs_preact(activation)
    return _empty(input, sizes, last), _empty(input, sizes, last) if keep else input.new_empty(0)


def _setup_conv2d(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, bias, residual, *geometry, activation, _ = inputs
    result, preact = output
    ctx.mark_non_differentiable(preact)
    ctx.activation, ctx.geometry = activation, geometry
    saved = saved_of(activation, result, preact)
    # Without a saved pre-activation it is computed again in the backward pass, from the forward's own arguments.
    ctx.recompute = activation != "none" and saved is None
    ctx.save_for_backward(input, weight, saved, *((bias, residual) if ctx.recompute else ()))


def _backward_conv2d(ops: Any, ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    input, weight, saved, *rest = ctx.saved_tensors
    if ctx.recompute:
        bias, residual = rest
        saved, _ = ops.conv2d(input, weight, bias, residual, *ctx.geometry, "none", False)
    needs = ctx.needs_input_grad[:4]
    grads = ops.conv2d_backward(grad, input, weight, saved, *ctx.geometry, ctx.activation, *needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), *[None] * 6)


def _check_conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    *needs: bool,
) -> None:
    op = "conv2d_backward"
    sizes = _output_sizes(op, input, weight, stride, padding, dilation, groups)
    check_activation(op, activation)
    _check_output_like(op, "grad_output", grad_output, input, sizes)
    check_saved(op, saved, activation, grad_output)


def _fake_conv2d_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, saved: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_input, need_weight, need_bias, need_residual = rest[-4:]
    nothing = input.new_empty(0)
    last_input, last_weight = _channels_last(input), _channels_last(weight)
    return (
        _empty(input, input.shape, last_input) if need_input else nothing,
        _empty(weight, weight.shape, last_weight) if need_weight else input.new_empty(0),
        weight.new_empty(weight.shape[:1] if need_bias else (0,)),
        _empty(grad_output, grad_output.shape, last_input or last_weight) if need_residual else input.new_empty(0),
    )


_registry.define(
    "conv2d",
    family="conv",
    check=_check_conv2d,
    fake=_fake_conv2d,
    setup_context=_setup_conv2d,
    backward=_backward_conv2d,
    autocast=_registry.cast_to_ambient,
)
_registry.define("conv2d_backward", family="conv", check=_check_conv2d_backward, fake=_fake_conv2d_backward)
