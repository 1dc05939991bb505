"""Norms over the last dimensions, with an optional residual added first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import (
    acc_dtype,
    check_float,
    check_like,
    check_same_device,
    check_same_dtype,
    fail,
    require,
    shape_text,
)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Root-mean-square norm: `h / sqrt(mean(h^2) + eps) * weight` with `h = input + residual`.

    Args:
        input: (..., *normalized_shape), float32, float16, bfloat16 (float64 on the CPU), any strides.
        normalized_shape: the last dimensions of input, over which the mean is taken.
        weight: normalized_shape, input's dtype, or None for ones.
        eps: added to the mean square; None for the machine epsilon of input's dtype, as torch.nn.functional.rms_norm.
        residual: like input, added to it (and rounded to its dtype) before the norm.

    Returns:
        The normalised tensor, contiguous, in input's dtype and shape. With a residual, a tuple of it and of the sum
        `input + residual`, which is what the next block of a transformer adds to.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit.

    Accumulates in float32 (float64 for float64). Differentiable in input, residual and weight; bitwise the same from
    run to run.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    ndim = _normalized_ndim("rms_norm", input, normalized_shape)
    if eps is None:
        eps = torch.finfo(input.dtype).eps
    output, total, _ = call("rms_norm", input, residual, ndim, weight, eps)
    return output if residual is None else (output, total)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Layer norm: `(h - mean(h)) / sqrt(var(h) + eps) * weight + bias` with `h = input + residual`.

    Args:
        input: (..., *normalized_shape), float32, float16, bfloat16 (float64 on the CPU), any strides.
        normalized_shape: the last dimensions of input, over which mean and variance are taken.
        weight: normalized_shape, input's dtype, or None for ones.
        bias: normalized_shape, input's dtype, or None for zeros.
        eps: added to the variance.
        residual: like input, added to it (and rounded to its dtype) before the norm.

    Returns:
        The normalised tensor, contiguous, in input's dtype and shape. With a residual, a tuple of it and of the sum
        `input + residual`.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit.

    Accumulates in float32 (float64 for float64), the variance from the differences to the mean, so a large mean costs
    no digits. Differentiable in input, residual, weight and bias; bitwise the same from run to run.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.
    """
    ndim = _normalized_ndim("layer_norm", input, normalized_shape)
    output, total, _, _ = call("layer_norm", input, residual, ndim, weight, bias, eps)
    return output if residual is None else (output, total)


def _normalized_ndim(op: str, input: Tensor, normalized_shape: Sequence[int]) -> int:
    ndim = len(normalized_shape)
    if not (1 <= ndim <= input.dim() and input.shape[-ndim:] == tuple(normalized_shape)):
        message = f"normalized_shape {shape_text(normalized_shape)} must be the last dimensions of input, "
        fail(op, message + f"got input {shape_text(input.shape)}")
    return ndim


# ---- argument checks, in the words of csrc/bindings/norm.cpp ----


def _check_ndim(op: str, input: Tensor, normalized_ndim: int) -> None:
    message = f"normalized_shape must have between 1 and input.dim() = {input.dim()} dimensions, got {normalized_ndim}"
    require(1 <= normalized_ndim <= input.dim(), op, message)


def _check_affine(op: str, name: str, tensor: Tensor | None, input: Tensor, normalized_ndim: int) -> None:
    if tensor is None:
        return
    check_same_device(op, name, tensor, "input", input)
    check_same_dtype(op, name, tensor, "input", input)
    expected = input.shape[input.dim() - normalized_ndim :]
    message = f"{name} must have shape {shape_text(expected)}, got {shape_text(tensor.shape)}"
    require(tensor.shape == expected, op, message)


def _check_statistics(op: str, name: str, tensor: Tensor, sum: Tensor, normalized_ndim: int) -> None:
    check_same_device(op, name, tensor, "sum", sum)
    rows = sum.shape[: sum.dim() - normalized_ndim].numel()
    dtype = acc_dtype(sum.dtype)
    message = f"{name} must hold {rows} elements of {dtype}, got {tensor.numel()} of {tensor.dtype}"
    require(tensor.numel() == rows and tensor.dtype == dtype, op, message)


def _check_forward(
    op: str, input: Tensor, residual: Tensor | None, normalized_ndim: int, weight: Tensor | None, bias: Tensor | None
) -> None:
    check_float(op, "input", input)
    _check_ndim(op, input, normalized_ndim)
    if residual is not None:
        check_like(op, "residual", residual, "input", input)
    _check_affine(op, "weight", weight, input, normalized_ndim)
    _check_affine(op, "bias", bias, input, normalized_ndim)


def _check_backward(
    op: str,
    grad_output: Tensor,
    grad_sum: Tensor | None,
    sum: Tensor,
    weight: Tensor | None,
    statistics: dict[str, Tensor],
    normalized_ndim: int,
) -> None:
    check_float(op, "sum", sum)
    _check_ndim(op, sum, normalized_ndim)
    check_like(op, "grad_output", grad_output, "sum", sum)
    if grad_sum is not None:
        check_like(op, "grad_sum", grad_sum, "sum", sum)
    _check_affine(op, "weight", weight, sum, normalized_ndim)
    for name, tensor in statistics.items():
        _check_statistics(op, name, tensor, sum, normalized_ndim)


# ---- fake outputs ----


def _fake_statistics(input: Tensor, normalized_ndim: int) -> Tensor:
    return input.new_empty(input.shape[: input.dim() - normalized_ndim], dtype=acc_dtype(input.dtype))


def _fake_sum(input: Tensor, residual: Tensor | None) -> Tensor:
    return input.new_empty(input.shape if residual is not None else (0,))


def _fake_affine(sum: Tensor, normalized_ndim: int, needed: bool) -> Tensor:
    return sum.new_empty(sum.shape[sum.dim() - normalized_ndim :] if needed else (0,))


# ---- autograd ----


def _save(ctx: Any, input: Tensor, residual: Tensor | None, total: Tensor, *rest: Tensor | None) -> None:
    """Saves what was normalised (the sum, or input itself) and the rest; gradients of unused outputs stay None."""
    ctx.set_materialize_grads(False)
    ctx.has_residual = residual is not None
    ctx.save_for_backward(input if residual is None else total, *rest)


def _setup_rms_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, residual, ctx.normalized_ndim, weight, _ = inputs
    _, total, rstd = output
    ctx.mark_non_differentiable(*((rstd,) if residual is not None else (total, rstd)))
    _save(ctx, input, residual, total, weight, rstd)


def _backward_rms_norm(ops: Any, ctx: Any, grad: Tensor | None, grad_total: Tensor | None, _: Any) -> tuple[Any, ...]:
    total, weight, rstd = ctx.saved_tensors
    need_input = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
    need_weight = weight is not None and ctx.needs_input_grad[3]
    grad = torch.zeros_like(total) if grad is None else grad  # Only the sum was used.
    grad_total = grad_total if ctx.has_residual else None
    grad_input, grad_weight = ops.rms_norm_backward(
        grad, grad_total, total, weight, rstd, ctx.normalized_ndim, need_input, need_weight
    )
    return (
        grad_input if ctx.needs_input_grad[0] else None,
        grad_input if ctx.needs_input_grad[1] else None,
        None,
        grad_weight if need_weight else None,
        None,
    )


def _setup_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    input, residual, ctx.normalized_ndim, weight, _bias, _eps = inputs
    _, total, mean, rstd = output
    ctx.mark_non_differentiable(*((mean, rstd) if residual is not None else (total, mean, rstd)))
    _save(ctx, input, residual, total, weight, mean, rstd)


def _backward_layer_norm(
    ops: Any, ctx: Any, grad: Tensor | None, grad_total: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    total, weight, mean, rstd = ctx.saved_tensors
    need_input = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
    need_weight, need_bias = ctx.needs_input_grad[3], ctx.needs_input_grad[4]
    grad = torch.zeros_like(total) if grad is None else grad  # Only the sum was used.
    grad_total = grad_total if ctx.has_residual else None
    grad_input, grad_weight, grad_bias = ops.layer_norm_backward(
        grad, grad_total, total, weight, mean, rstd, ctx.normalized_ndim, need_input, need_weight, need_bias
    )
    return (
        grad_input if ctx.needs_input_grad[0] else None,
        grad_input if ctx.needs_input_grad[1] else None,
        None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
        None,
    )


# ---- definitions ----

_registry.define(
    "rms_norm",
    family="norm",
    check=lambda input, residual, ndim, weight, eps: _check_forward("rms_norm", input, residual, ndim, weight, None),
    fake=lambda input, residual, ndim, weight, eps: (
        input.new_empty(input.shape),
        _fake_sum(input, residual),
        _fake_statistics(input, ndim),
    ),
    setup_context=_setup_rms_norm,
    backward=_backward_rms_norm,
    autocast=_registry.cast_to_ambient,
)
_registry.define(
    "rms_norm_backward",
    family="norm",
    check=lambda grad, grad_sum, sum, weight, rstd, ndim, need_input, need_weight: _check_backward(
        "rms_norm_backward", grad, grad_sum, sum, weight, {"rstd": rstd}, ndim
    ),
    fake=lambda grad, grad_sum, sum, weight, rstd, ndim, need_input, need_weight: (
        sum.new_empty(sum.shape if need_input else (0,)),
        _fake_affine(sum, ndim, need_weight),
    ),
)
_registry.define(
    "layer_norm",
    family="norm",
    check=lambda input, residual, ndim, weight, bias, eps: _check_forward(
        "layer_norm", input, residual, ndim, weight, bias
    ),
    fake=lambda input, residual, ndim, weight, bias, eps: (
        input.new_empty(input.shape),
        _fake_sum(input, residual),
        _fake_statistics(input, ndim),
        _fake_statistics(input, ndim),
    ),
    setup_context=_setup_layer_norm,
    backward=_backward_layer_norm,
    autocast=_registry.cast_to_ambient,
)
_registry.define(
    "layer_norm_backward",
    family="norm",
    check=lambda grad, grad_sum, sum, weight, mean, rstd, ndim, *needs: _check_backward(
        "layer_norm_backward", grad, grad_sum, sum, weight, {"mean": mean, "rstd": rstd}, ndim
    ),
    fake=lambda grad, grad_sum, sum, weight, mean, rstd, ndim, need_input, need_weight, need_bias: (
        sum.new_empty(sum.shape if need_input else (0,)),
        _fake_affine(sum, ndim, need_weight),
        _fake_affine(sum, ndim, need_bias),
    ),
)
