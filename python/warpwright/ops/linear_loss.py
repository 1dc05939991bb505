"""Losses of a linear layer's output, which is never whole in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry, distributed
from warpwright._arithmetic import arithmetic_of
from warpwright._backend import call
from warpwright._check import check_float, check_precision, check_same_device, check_same_dtype, require, shape_text
from warpwright.ops._linear_loss import check_layer, early_needs, grads_like
from warpwright.ops._loss import (
    check_class_weight,
    check_grad_loss,
    check_reduction,
    check_row_statistic,
    check_total,
    empty_loss,
    float32_loss,
    mean_of_parts,
)
from warpwright.ops.loss import check_options


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    class_weight: Tensor | None = None,
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
        class_weight: how much each class counts, (classes), in input's dtype or float32, or None; `weight` of
            `cross_entropy`. It has no gradient.
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
    parts = reduction == "mean" and distributed.is_cut(input)
    options = ignore_index, "sum" if parts else reduction, label_smoothing, z_loss, softcap or 0.0
    needs = early_needs(input, weight, bias, reduction)
    arguments = (input, weight, target, bias, class_weight, *options, chunk_rows, *arithmetic_of(input), parts, *needs)
    loss, _, _, total, *_ = call("linear_cross_entropy", *arguments)
    return mean_of_parts(loss, total, input) if parts else loss


def _check_arguments(
    op: str,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    chunk_rows: int | None,
    precision: str,
    batch_invariant: bool,
) -> None:
    check_layer(op, input, weight, bias, chunk_rows)
    check_same_device(op, "target", target, "input", input)
    require(target.dtype == torch.int64, op, f"target must be torch.int64, got {target.dtype}")
    rows = tuple(input.shape[:-1])
    message = f"target must have shape {shape_text(rows)}, got {shape_text(target.shape)}"
    require(tuple(target.shape) == rows, op, message)
    check_class_weight(op, "class_weight", class_weight, input, weight.shape[0])
    check_options(op, label_smoothing, z_loss, softcap)
    check_reduction(op, reduction)
    check_precision(op, precision)


def _check(input: Tensor, weight: Tensor, target: Tensor, *rest: Any) -> None:
    _check_arguments("linear_cross_entropy", input, weight, target, *rest[:10])


def _check_backward(
    grad_loss: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    lse: Tensor,
    mass: Tensor,
    total: Tensor,
    *options: Any,
) -> None:
    op, reduction, rows = "linear_cross_entropy_backward", options[1], target.numel()
    _check_arguments(op, input, weight, target, bias, class_weight, *options[:8])
    check_grad_loss(op, grad_loss, input, target.shape, reduction)
    check_row_statistic(op, "lse", lse, input, 2 * rows)
    check_row_statistic(op, "mass", mass, input, 0 if class_weight is None else rows)
    check_total(op, total, input, reduction)


def _fake(
    input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, class_weight: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    reduction, in_float32 = options[1], options[8]
    loss, total = empty_loss(input, target.shape, reduction, in_float32)
    needs = [need and reduction != "none" for need in options[9:]]
    lse = input.new_empty((2, target.numel()), dtype=total.dtype)
    mass = lse.new_empty(0 if class_weight is None else target.numel())
    return loss, lse, mass, total, *grads_like(input, weight, needs)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, options = *inputs[:5], inputs[5:]
    _, *statistics = output[:4]
    grads = output[4:]
    ctx.mark_non_differentiable(*statistics, *grads)
    ctx.options = options[:8]
    ctx.early = options[1] != "none" and any(options[9:])
    ctx.save_for_backward(*(grads if ctx.early else (*tensors, *statistics)))


def _backward(ops: Any, ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    input_need, weight_need, _, bias_need = ctx.needs_input_grad[:4]
    needs = input_need, weight_need, bias_need
    if ctx.early:
        found = ops.linear_loss_backward(grad, *ctx.saved_tensors)
    else:
        found = ops.linear_cross_entropy_backward(grad, *ctx.saved_tensors, *ctx.options, *needs)
    of_input, of_weight, of_bias = (g if need else None for g, need in zip(found, needs, strict=True))
    return of_input, of_weight, None, of_bias, *[None] * 13


def _autocast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    cast = _registry.cast_to_ambient(args, dtype)
    return float32_loss(13)((*cast[:4], args[4], *cast[5:]), dtype)  # Class weights are read as they are.


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
    fake=lambda grad_loss, input, weight, *rest: grads_like(input, weight, rest[-3:]),
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
