"""Losses that teach one model by another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._arithmetic import arithmetic_of
from warpwright._backend import call
from warpwright._check import check_precision, check_same_device, check_same_dtype, require, shape_text
from warpwright.ops._epilogue import check_bias
from warpwright.ops._linear_loss import check_layer, early_needs, grads_like
from warpwright.ops._loss import check_grad_loss, empty_loss, float32_loss
from warpwright.ops.pointwise_loss import check_kl_reduction


def linear_kl_div(
    input: Tensor,
    weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    chunk_rows: int | None = None,
) -> Tensor:
    """How far a student's classes are from its teacher's: the Kullback-Leibler divergence `sum(p * log(p / q))` of
    `q = softmax(linear(input, weight, bias) / temperature)` from
    `p = softmax(linear(teacher_input, teacher_weight, teacher_bias) / temperature)`, without the logits of either: they
    exist for a few rows at a time.

    Args:
        input: what the student's output layer gets, (..., features), float32, float16, bfloat16 (float64 on the CPU),
            any strides.
        weight: (classes, features), input's dtype.
        teacher_input: what the teacher's gets, input's shape but for its own features, input's dtype.
        teacher_weight: (classes, features of teacher_input), input's dtype.
        bias, teacher_bias: (classes), input's dtype, or None.
        temperature: what logits are divided by, positive. The loss is not multiplied by its square, as some do to keep
            gradients of one size.
        reduction: "batchmean", over the rows; "sum"; "mean", over rows and classes, as `kl_div`; or "none", the
            divergence of each row.
        chunk_rows: how many rows' logits exist at once. None for a twentieth of the rows, so that both layers' are a
            tenth of one layer's, or for what 16 MiB hold where that is more.

    Returns:
        A scalar, or for "none" a tensor of input's shape without features; in input's dtype, under autocast in float32.
        Over no row a mean is NaN.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit.

    Differentiable in input, weight and bias. The teacher is a constant: no gradient flows into teacher_input,
    teacher_weight and teacher_bias, whether or not they require one. Logits are rounded to input's dtype, as `linear`
    would; everything after that accumulates in float32, and keeps the digits of a small divergence. Gradients are
    computed in the forward pass where `linear_cross_entropy` does so, and added up as it says. Bitwise the same from
    run to run.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2; Hsu et al., "Liger Kernel:
    Efficient Triton Kernels for LLM Training", 2024, section 3.2 (chunks).
    """
    needs = early_needs(input, weight, bias, reduction)
    teacher = teacher_input.detach(), teacher_weight.detach()
    biases = bias, None if teacher_bias is None else teacher_bias.detach()
    arguments = (input, weight, *teacher, *biases, float(temperature), reduction, chunk_rows, *arithmetic_of(input))
    return call("linear_kl_div", *arguments, False, *needs)[0]


def _check_arguments(
    op: str,
    input: Tensor,
    weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    bias: Tensor | None,
    teacher_bias: Tensor | None,
    temperature: float,
    reduction: str,
    chunk_rows: int | None,
    precision: str,
    batch_invariant: bool,
) -> None:
    check_layer(op, input, weight, bias, chunk_rows)
    check_same_device(op, "teacher_input", teacher_input, "input", input)
    check_same_dtype(op, "teacher_input", teacher_input, "input", input)
    ours, theirs = shape_text(input.shape), shape_text(teacher_input.shape)
    message = f"teacher_input must have the shape of input but for its features, {ours}, got {theirs}"
    fits = teacher_input.dim() == input.dim() and teacher_input.shape[:-1] == input.shape[:-1]
    require(fits, op, message)
    message = f"teacher_weight must have 2 dimensions, got {teacher_weight.dim()}"
    require(teacher_weight.dim() == 2, op, message)
    check_same_device(op, "teacher_weight", teacher_weight, "input", input)
    check_same_dtype(op, "teacher_weight", teacher_weight, "input", input)
    (classes, features), expected = teacher_weight.shape, teacher_input.shape[-1]
    message = f"teacher_weight has {features} input features, teacher_input has {expected}"
    require(features == expected, op, message)
    message = f"teacher_weight has {classes} classes, weight has {weight.shape[0]}"
    require(classes == weight.shape[0], op, message)
    check_bias(op, "teacher_bias", teacher_bias, input, classes)
    require(temperature > 0, op, f"temperature must be positive, got {temperature:g}")
    check_kl_reduction(op, reduction)
    check_precision(op, precision)


def _check_backward(grad_loss: Tensor, input: Tensor, *rest: Any) -> None:
    op, reduction = "linear_kl_div_backward", rest[6]
    _check_arguments(op, input, *rest[:10])
    check_grad_loss(op, grad_loss, input, input.shape[:-1], reduction)


def _fake(input: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    reduction, in_float32, needs = rest[5], rest[9], rest[10:]
    loss = empty_loss(input, input.shape[:-1], reduction, in_float32)[0]
    return loss, *grads_like(input, weight, [need and reduction != "none" for need in needs])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, options, needs = inputs[:6], inputs[6:11], inputs[12:]
    grads = output[1:]
    ctx.mark_non_differentiable(*grads)
    ctx.options = options
    ctx.early = options[1] != "none" and any(needs)
    ctx.save_for_backward(*(grads if ctx.early else tensors))


def _backward(ops: Any, ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    input_need, weight_need, _, _, bias_need = ctx.needs_input_grad[:5]
    needs = input_need, weight_need, bias_need
    if ctx.early:
        found = ops.linear_loss_backward(grad, *ctx.saved_tensors)
    else:
        found = ops.linear_kl_div_backward(grad, *ctx.saved_tensors, *ctx.options, *needs)
    of_input, of_weight, of_bias = (g if need else None for g, need in zip(found, needs, strict=True))
    return of_input, of_weight, None, None, of_bias, *[None] * 10


def _autocast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return float32_loss(11)(_registry.cast_to_ambient(args, dtype), dtype)


_registry.define(
    "linear_kl_div",
    family="distillation",
    check=lambda *arguments: _check_arguments("linear_kl_div", *arguments[:11]),
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    autocast=_autocast,
)
_registry.define(
    "linear_kl_div_backward",
    family="distillation",
    check=_check_backward,
    fake=lambda grad_loss, input, weight, *rest: grads_like(input, weight, rest[-3:]),
)
