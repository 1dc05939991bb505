"""Losses over classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry, distributed
from warpwright._backend import call
from warpwright._check import acc_dtype, check_same_device, check_same_shape, require
from warpwright.ops._loss import REDUCTIONS as REDUCTIONS
from warpwright.ops._loss import (
    check_class_indices,
    check_classes,
    check_grad_loss,
    check_reduction,
    check_row_statistic,
    check_total,
    class_dim,
    empty_loss,
    float32_loss,
    mean_of_parts,
    row_shape,
)

# ---- cross_entropy ----


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """Cross entropy between logits and classes, `logsumexp(input) - input[target]` of each row, reduced; or between
    logits and probabilities, `sum(target * (logsumexp(input) - input))`.

    Args:
        input: logits, (C,), (N, C) or (N, C, d1, ...), float32, float16, bfloat16 (float64 on the CPU), any strides.
        target: class indices, int64, input's shape without C; or probabilities, input's shape, in input's dtype or
            float32.
        weight: how much each class counts, (C), in input's dtype or float32. It has no gradient.
        ignore_index: rows with this target give no loss and no gradient, and do not count in the mean. Negative where
            target holds probabilities.
        reduction: "mean", over the weights of the targets of the rows that count, or with probabilities over the rows;
            "sum", or "none".
        label_smoothing: from 0 to 1: this part of the target is spread evenly over all classes.
        z_loss: adds `z_loss * logsumexp(input) ** 2` to the loss of each row that counts; keeps logits near zero.
        softcap: the loss is that of `softcap * tanh(input / softcap)`. None or 0 for the logits as they are.

    Returns:
        A scalar, or for "none" a tensor of input's shape without C; in input's dtype, under autocast in float32. The
        mean over no row is NaN, as in PyTorch.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit; on the CPU also for a target that
            is neither a class nor ignore_index. On a GPU nobody can look at the targets without waiting for it: there
            such a row's loss and gradient are NaN. It is never used as an address.

    Accumulates in float32 (float64 for float64); log-probabilities are never written to memory, and input is never
    written to. Differentiable in input and in probabilities; bitwise the same from run to run. The gradient is a pass
    of its own: taken in the forward pass it would have to be scaled by the gradient of the loss afterwards, which reads
    and writes it once more.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015, section 7 (smoothing);
    Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Chowdhery et al., "PaLM", 2022, section
    5 (z_loss); Gemma Team, "Gemma 2", 2024, section 2 (softcap).
    """
    rest = label_smoothing, z_loss, softcap or 0.0
    if reduction == "mean" and distributed.is_cut(input):
        loss, *_, total = call("cross_entropy", input, target, weight, ignore_index, "sum", *rest, True)
        return mean_of_parts(loss, total, input)
    return call("cross_entropy", input, target, weight, ignore_index, reduction, *rest, False)[0]


def _holds_probabilities(target: Tensor) -> bool:
    return target.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_options(op: str, label_smoothing: float, z_loss: float, softcap: float) -> None:
    message = f"label_smoothing must be between 0 and 1, got {label_smoothing:g}"
    require(0 <= label_smoothing <= 1, op, message)
    require(z_loss >= 0, op, f"z_loss must not be negative, got {z_loss:g}")
    require(softcap >= 0, op, f"softcap must not be negative, got {softcap:g}")


def _check_arguments(
    op: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
) -> None:
    check_classes(op, input, weight)
    if _holds_probabilities(target):
        acc = acc_dtype(input.dtype)
        check_same_device(op, "target", target, "input", input)
        message = f"target must be torch.int64, {input.dtype} or {acc}, got {target.dtype}"
        require(target.dtype in (input.dtype, acc), op, message)
        check_same_shape(op, "target", target, "input", input)
        message = f"ignore_index must be negative where target holds probabilities, got {ignore_index}"
        require(ignore_index < 0, op, message)
    else:
        check_class_indices(op, input, target)
    check_options(op, label_smoothing, z_loss, softcap)
    check_reduction(op, reduction)


def _check(input: Tensor, target: Tensor, weight: Tensor | None, *options: Any) -> None:
    _check_arguments("cross_entropy", input, target, weight, *options[:-1])


def _has_mass(target: Tensor, weight: Tensor | None) -> bool:
    return weight is not None or _holds_probabilities(target)


def _check_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    mass: Tensor,
    total: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    need_input: bool,
    need_target: bool,
) -> None:
    op = "cross_entropy_backward"
    _check_arguments(op, input, target, weight, ignore_index, reduction, label_smoothing, z_loss, softcap)
    check_grad_loss(op, grad_loss, input, row_shape(input), reduction)
    rows = input.numel() // input.shape[class_dim(input)]
    check_row_statistic(op, "lse", lse, input, 2 * rows)
    check_row_statistic(op, "mass", mass, input, rows if _has_mass(target, weight) else 0)
    check_total(op, total, input, reduction)


def _fake(input: Tensor, target: Tensor, weight: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
    shape, acc = row_shape(input), acc_dtype(input.dtype)
    loss, total = empty_loss(input, shape, options[1], options[-1])
    mass = input.new_empty(shape if _has_mass(target, weight) else (0,), dtype=acc)
    return loss, input.new_empty((2, *shape), dtype=acc), mass, total


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, target, weight, *ctx.options, _ = inputs
    _, *statistics = output
    ctx.mark_non_differentiable(*statistics)
    ctx.save_for_backward(input, target, weight, *statistics)


def _backward(ops: Any, ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[:2]
    grads = ops.cross_entropy_backward(grad, *ctx.saved_tensors, *ctx.options, *needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), *[None] * 7)


def _fake_backward(grad_loss: Tensor, input: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_input, need_target = rest[-2], rest[-1] and _holds_probabilities(target)
    grad_target = target.new_empty(target.shape if need_target else (0,))
    return input.new_empty(input.shape if need_input else (0,)), grad_target


_registry.define(
    "cross_entropy",
    family="loss",
    check=_check,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    autocast=float32_loss(8),
)
_registry.define("cross_entropy_backward", family="loss", check=_check_backward, fake=_fake_backward)


# ---- nll_loss ----


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The negative log-likelihood, `-weight[target] * input[target]` of each row, reduced.

    Args:
        input: log-probabilities, (C,), (N, C) or (N, C, d1, ...), float32, float16, bfloat16 (float64 on the CPU), any
            strides.
        target: class indices, int64, input's shape without C.
        weight, ignore_index, reduction: see `cross_entropy`.

    Returns:
        A scalar, or for "none" a tensor like target; in input's dtype, under autocast in float32. The mean over no row
        is NaN, as in PyTorch.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit; for targets see `cross_entropy`.

    Accumulates in float32 (float64 for float64). Differentiable in input; bitwise the same from run to run. Logits are
    better given to `cross_entropy`, which never writes their log-probabilities.
    """
    if reduction == "mean" and distributed.is_cut(input):
        loss, total = call("nll_loss", input, target, weight, ignore_index, "sum", True)
        return mean_of_parts(loss, total, input)
    return call("nll_loss", input, target, weight, ignore_index, reduction, False)[0]


def _check_nll(op: str, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> None:
    check_classes(op, input, weight)
    check_class_indices(op, input, target)
    check_reduction(op, reduction)


def _check_nll_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    total: Tensor,
    ignore_index: int,
    reduction: str,
) -> None:
    op = "nll_loss_backward"
    _check_nll(op, input, target, weight, reduction)
    check_grad_loss(op, grad_loss, input, target.shape, reduction)
    check_total(op, total, input, reduction)


def _setup_nll(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, target, weight, *ctx.options, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(input, target, weight, output[1])


def _backward_nll(ops: Any, ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    return ops.nll_loss_backward(grad, *ctx.saved_tensors, *ctx.options), *[None] * 5


_registry.define(
    "nll_loss",
    family="loss",
    check=lambda input, target, weight, _, reduction, __: _check_nll("nll_loss", input, target, weight, reduction),
    fake=lambda input, target, weight, _, reduction, in_float32: empty_loss(
        input, row_shape(input), reduction, in_float32
    ),
    setup_context=_setup_nll,
    backward=_backward_nll,
    autocast=float32_loss(5),
)
_registry.define(
    "nll_loss_backward",
    family="loss",
    check=_check_nll_backward,
    fake=lambda grad_loss, input, *_: input.new_empty(input.shape),
)
