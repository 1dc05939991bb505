"""Losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import acc_dtype, check_float, check_same_device, fail, require, shape_text

REDUCTIONS = ("none", "mean", "sum")


def cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy between logits and class indices: `logsumexp(input) - input[target]` of each row, reduced.

    Args:
        input: logits, (C,), (N, C) or (N, C, d1, ...), float32, float16, bfloat16 (float64 on the CPU), any strides.
        target: class indices, int64, input's shape without C.
        ignore_index: rows with this target give no loss and no gradient, and do not count in the mean.
        reduction: "mean" over the rows that count, "sum", or "none".
        label_smoothing: from 0 to 1: this part of the target is spread evenly over all classes.

    Returns:
        A scalar, or for "none" a tensor like target; in input's dtype, under autocast in float32. The mean over no row
        is NaN, as in PyTorch.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit; on the CPU also for a target that
            is neither a class nor ignore_index. On a GPU nobody can look at the targets without waiting for it: there
            such a row's loss and gradient are NaN. It is never used as an address.

    Accumulates in float32 (float64 for float64); log-probabilities are never written to memory. Differentiable in
    input; bitwise the same from run to run.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015, section 7 (smoothing);
    Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
    """
    return call("cross_entropy", input, target, ignore_index, reduction, label_smoothing, False)[0]


# ---- argument checks, in the words of csrc/bindings/loss.cpp ----


def _class_dim(input: Tensor) -> int:
    """The class dimension is the second, or the only one."""
    return 0 if input.dim() == 1 else 1


def _check_arguments(op: str, input: Tensor, target: Tensor, reduction: str, label_smoothing: float) -> None:
    check_float(op, "input", input)
    require(input.dim() >= 1, op, "input must have at least 1 dimension, got 0")
    dim = _class_dim(input)
    require(input.shape[dim] >= 1, op, f"input must have at least 1 class, got shape {shape_text(input.shape)}")
    check_same_device(op, "target", target, "input", input)
    require(target.dtype == torch.int64, op, f"target must be torch.int64, got {target.dtype}")
    expected = (*input.shape[:dim], *input.shape[dim + 1 :])
    message = f"target must have shape {shape_text(expected)}, got {shape_text(target.shape)}"
    require(tuple(target.shape) == expected, op, message)
    message = f"label_smoothing must be between 0 and 1, got {label_smoothing:g}"
    require(0 <= label_smoothing <= 1, op, message)
    if reduction not in REDUCTIONS:
        fail(op, f"reduction must be one of {', '.join(REDUCTIONS)}, got '{reduction}'")


def _check_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    lse: Tensor,
    valid: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> None:
    op, acc = "cross_entropy_backward", acc_dtype(input.dtype)
    _check_arguments(op, input, target, reduction, label_smoothing)
    check_same_device(op, "grad_loss", grad_loss, "input", input)
    message = f"grad_loss must be {input.dtype} or {acc}, got {grad_loss.dtype}"
    require(grad_loss.dtype in (input.dtype, acc), op, message)
    expected = target.shape if reduction == "none" else ()
    message = f"grad_loss must have shape {shape_text(expected)}, got {shape_text(grad_loss.shape)}"
    require(tuple(grad_loss.shape) == tuple(expected), op, message)
    check_same_device(op, "lse", lse, "input", input)
    message = f"lse must hold {target.numel()} elements of {acc}, got {lse.numel()} of {lse.dtype}"
    require(lse.numel() == target.numel() and lse.dtype == acc, op, message)
    check_same_device(op, "valid", valid, "input", input)
    fits = reduction != "mean" or (valid.numel() == 1 and valid.dtype == torch.int64)
    require(fits, op, f"valid must hold 1 element of torch.int64, got {valid.numel()} of {valid.dtype}")


# ---- fake outputs, autograd, autocast ----


def _fake(
    input: Tensor, target: Tensor, ignore_index: int, reduction: str, label_smoothing: float, float32_loss: bool
) -> tuple[Tensor, Tensor, Tensor]:
    acc, reduced = acc_dtype(input.dtype), reduction != "none"
    return (
        input.new_empty(() if reduced else target.shape, dtype=acc if float32_loss else input.dtype),
        input.new_empty(target.shape, dtype=acc),
        input.new_empty(() if reduced else (0,), dtype=torch.int64),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, target, ctx.ignore_index, ctx.reduction, ctx.label_smoothing, _ = inputs
    _, lse, valid = output
    ctx.mark_non_differentiable(lse, valid)
    ctx.save_for_backward(input, target, lse, valid)


def _backward(ops: Any, ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    grad_input = ops.cross_entropy_backward(
        grad, *ctx.saved_tensors, ctx.ignore_index, ctx.reduction, ctx.label_smoothing
    )
    return grad_input, None, None, None, None, None


def _autocast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The loss is float32, as PyTorch's under autocast; the logits are read as they are, without its upcast copy."""
    return *args[:5], True


_registry.define(
    "cross_entropy",
    family="loss",
    check=lambda input, target, ignore_index, reduction, label_smoothing, float32_loss: _check_arguments(
        "cross_entropy", input, target, reduction, label_smoothing
    ),
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    autocast=_autocast,
)
_registry.define(
    "cross_entropy_backward",
    family="loss",
    check=_check_backward,
    fake=lambda grad_loss, input, *_: input.new_empty(input.shape),
)
