"""Losses of a linear layer's output, which is never whole in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._arithmetic import arithmetic_of
from warpwright._backend import call
from warpwright._check import check_float, check_precision, check_same_device, check_same_dtype, require, shape_text
from warpwright.ops._epilogue import check_bias, check_operands
from warpwright.ops._loss import (
    check_grad_loss,
    check_reduction,
    check_row_statistic,
    check_total,
    empty_loss,
    float32_loss,
)
from warpwright.ops.loss import check_options

#: Logits that may always exist at once, in bytes, and else how small a part of them all.
CHUNK_BYTES, CHUNK_PART = 16 * 2**20, 10


def chunk_of(input: Tensor, weight: Tensor, chunk_rows: int | None) -> int:
    """How many rows' logits exist at once."""
    rows, row_bytes = input.shape[:-1].numel(), max(1, weight.shape[0] * input.element_size())
    if chunk_rows is not None:
        return chunk_rows
    chunk = max(CHUNK_BYTES // row_bytes, rows // CHUNK_PART, 1)
    # In whole tiles of a product.
    return min(chunk // 128 * 128 if chunk >= 128 else chunk, max(rows, 1))


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """`cross_entropy(linear(input, weight, bias), target)` without the logits: they exist for a few rows at a time.

    Args:
        input: (..., features), float32, float16, bfloat16 (float64 on the CPU), any strides.
        weight: (classes, features), input's dtype.
        target: class indices, int64, input's shape without features.
        bias: (classes), input's dtype, or None.
        ignore_index, reduction, label_smoothing, z_loss, softcap: see `cross_entropy`.
        chunk_rows: how many rows' logits exist at once. None for a tenth of the rows, or for what 16 MiB hold where
            that is more.

    Returns:
        A scalar, or for "none" a tensor like target; in input's dtype, under autocast in float32.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit; for targets see
            `cross_entropy`.

    Logits are rounded to input's dtype, as `linear` would; everything after that accumulates in float32. Differentiable
    in input, weight and bias. Where one of them wants a gradient and the loss is reduced, the gradients are computed in
    the forward pass, from the logits that are there: the backward pass scales them by the gradient of the loss, and
    three products are all there is. For reduction "none", and in float16, whose gradients need their loss scale, the
    backward pass computes the logits again. With several chunks the gradient of the weight is added up in a float32
    buffer of its size and rounded once. Bitwise the same from run to run.

    Source: Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024, section 3.2.
    """
    wanted = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (input, weight, bias)]
    early = reduction != "none" and input.dtype != torch.float16
    needs = wanted if early else [False] * 3
    options = ignore_index, reduction, label_smoothing, z_loss, softcap or 0.0
    require(input.dim() >= 1 and weight.dim() == 2, "linear_cross_entropy", _ranks(input, weight))
    chunk = chunk_of(input, weight, chunk_rows)
    arguments = (input, weight, target, bias, *options, chunk, *arithmetic_of(input), False, *needs)
    return call("linear_cross_entropy", *arguments)[0]


def _ranks(input: Tensor, weight: Tensor) -> str:
    if input.dim() < 1:
        return "input must have at least 1 dimension, got 0"
    return f"weight must have 2 dimensions, got {weight.dim()}"


def _check_arguments(
    op: str,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    chunk_rows: int,
    precision: str,
    batch_invariant: bool,
) -> None:
    check_operands(op, input, "weight", weight)
    classes = weight.shape[0]
    require(classes >= 1, op, f"weight must have at least 1 class, got shape {shape_text(weight.shape)}")
    check_bias(op, "bias", bias, input, classes)
    check_same_device(op, "target", target, "input", input)
    require(target.dtype == torch.int64, op, f"target must be torch.int64, got {target.dtype}")
    rows = tuple(input.shape[:-1])
    message = f"target must have shape {shape_text(rows)}, got {shape_text(target.shape)}"
    require(tuple(target.shape) == rows, op, message)
    check_options(op, label_smoothing, z_loss, softcap)
    require(chunk_rows >= 1, op, f"chunk_rows must be positive, got {chunk_rows}")
    check_reduction(op, reduction)
    check_precision(op, precision)


def _check(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, *options: Any) -> None:
    _check_arguments("linear_cross_entropy", input, weight, target, bias, *options[:8])


def _check_backward(
    grad_loss: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    total: Tensor,
    *options: Any,
) -> None:
    op, reduction = "linear_cross_entropy_backward", options[1]
    _check_arguments(op, input, weight, target, bias, *options[:8])
    check_grad_loss(op, grad_loss, input, target.shape, reduction)
    check_row_statistic(op, "lse", lse, input, 2 * target.numel())
    check_total(op, total, input, reduction)


def _grads_like(input: Tensor, weight: Tensor, needs: Any) -> tuple[Tensor, ...]:
    shapes = (input.shape, weight.shape, weight.shape[:1])
    return tuple(input.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))


def _fake(input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
    reduction, in_float32 = options[1], options[8]
    loss, total = empty_loss(input, target.shape, reduction, in_float32)
    needs = [need and reduction != "none" for need in options[9:]]
    lse = input.new_empty((2, target.numel()), dtype=total.dtype)
    return loss, lse, total, *_grads_like(input, weight, needs)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, weight, target, bias, *options = inputs
    _, lse, total, *grads = output
    ctx.mark_non_differentiable(lse, total, *grads)
    ctx.options, ctx.kept = options[:8], options[9:]
    ctx.early = options[1] != "none" and any(ctx.kept)
    ctx.save_for_backward(*(grads if ctx.early else (input, weight, target, bias, lse, total)))


def _backward(ops: Any, ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    input_need, weight_need, _, bias_need = ctx.needs_input_grad[:4]
    needs = input_need, weight_need, bias_need
    if ctx.early:
        found = ops.linear_loss_backward(grad, *ctx.saved_tensors)
    else:
        found = ops.linear_cross_entropy_backward(grad, *ctx.saved_tensors, *ctx.options, *needs)
    of_input, of_weight, of_bias = (g if need else None for g, need in zip(found, needs, strict=True))
    return of_input, of_weight, None, of_bias, *[None] * 12


def _autocast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return float32_loss(12)(_registry.cast_to_ambient(args, dtype), dtype)


_registry.define(
    "linear_cross_entropy",
    family="linear_loss",
    check=_check,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    autocast=_autocast,
)
_registry.define(
    "linear_cross_entropy_backward",
    family="linear_loss",
    check=_check_backward,
    fake=lambda grad_loss, input, weight, *rest: _grads_like(input, weight, rest[-3:]),
)


# ---- what the forward pass left ----


def _check_scale(grad_loss: Tensor, grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    op = "linear_loss_backward"
    check_float(op, "grad_input", grad_input)
    check_grad_loss(op, grad_loss, grad_input, (), "sum")
    for name, grad in (("grad_weight", grad_weight), ("grad_bias", grad_bias)):
        check_same_device(op, name, grad, "grad_input", grad_input)
        check_same_dtype(op, name, grad, "grad_input", grad_input)


_registry.define(
    "linear_loss_backward",
    family="linear_loss",
    check=_check_scale,
    fake=lambda grad_loss, *grads: tuple(g.new_empty(g.shape) for g in grads),
)
