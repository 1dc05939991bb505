"""What the losses share: the checks, in the words of csrc/bindings/loss.cpp, and the outputs that a reduction makes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from warpwright._check import acc_dtype, check_float, check_same_device, fail, require, shape_text

REDUCTIONS = ("none", "mean", "sum")


def check_reduction(op: str, reduction: str) -> None:
    if reduction not in REDUCTIONS:
        fail(op, f"reduction must be one of {', '.join(REDUCTIONS)}, got '{reduction}'")


def mean_of_parts(loss: Tensor, total: Tensor, input: Tensor) -> Tensor:
    """The mean of a batch that is cut over several processes: what each summed up, and what each counted, as numbers
    that all of them have."""
    from warpwright.distributed._local import summed

    loss, total = summed(cast(Any, loss)), summed(cast(Any, total))
    autocast = torch.is_autocast_enabled(input.device.type)
    return (loss / total).to(acc_dtype(input.dtype) if autocast else input.dtype)


def class_dim(input: Tensor) -> int:
    """The class dimension is the second, or the only one."""
    return 0 if input.dim() == 1 else 1


def row_shape(input: Tensor) -> tuple[int, ...]:
    """input's shape without the class dimension."""
    dim = class_dim(input)
    return (*input.shape[:dim], *input.shape[dim + 1 :])


def check_classes(op: str, input: Tensor, weight: Tensor | None) -> None:
    check_float(op, "input", input)
    require(input.dim() >= 1, op, "input must have at least 1 dimension, got 0")
    classes = input.shape[class_dim(input)]
    require(classes >= 1, op, f"input must have at least 1 class, got shape {shape_text(input.shape)}")
    check_class_weight(op, "weight", weight, input, classes)


def check_class_weight(op: str, name: str, weight: Tensor | None, input: Tensor, classes: int) -> None:
    if weight is None:
        return
    check_same_device(op, name, weight, "input", input)
    acc = acc_dtype(input.dtype)
    require(weight.dtype in (input.dtype, acc), op, f"{name} must be {input.dtype} or {acc}, got {weight.dtype}")
    message = f"{name} must have shape ({classes},), got {shape_text(weight.shape)}"
    require(tuple(weight.shape) == (classes,), op, message)


def check_class_indices(op: str, input: Tensor, target: Tensor) -> None:
    check_same_device(op, "target", target, "input", input)
    require(target.dtype == torch.int64, op, f"target must be torch.int64, got {target.dtype}")
    expected = row_shape(input)
    message = f"target must have shape {shape_text(expected)}, got {shape_text(target.shape)}"
    require(tuple(target.shape) == expected, op, message)


def check_grad_loss(op: str, grad_loss: Tensor, input: Tensor, shape: Any, reduction: str) -> None:
    acc = acc_dtype(input.dtype)
    check_same_device(op, "grad_loss", grad_loss, "input", input)
    message = f"grad_loss must be {input.dtype} or {acc}, got {grad_loss.dtype}"
    require(grad_loss.dtype in (input.dtype, acc), op, message)
    expected = tuple(shape) if reduction == "none" else ()
    message = f"grad_loss must have shape {shape_text(expected)}, got {shape_text(grad_loss.shape)}"
    require(tuple(grad_loss.shape) == expected, op, message)


def check_total(op: str, total: Tensor, input: Tensor, reduction: str) -> None:
    acc = acc_dtype(input.dtype)
    check_same_device(op, "total", total, "input", input)
    fits = reduction != "mean" or (total.numel() == 1 and total.dtype == acc)
    require(fits, op, f"total must hold 1 element of {acc}, got {total.numel()} of {total.dtype}")


def check_row_statistic(op: str, name: str, tensor: Tensor, input: Tensor, rows: int) -> None:
    acc = acc_dtype(input.dtype)
    check_same_device(op, name, tensor, "input", input)
    message = f"{name} must hold {rows} elements of {acc}, got {tensor.numel()} of {tensor.dtype}"
    require(tensor.numel() == rows and tensor.dtype == acc, op, message)


def empty_loss(input: Tensor, shape: Any, reduction: str, float32_loss: bool) -> tuple[Tensor, Tensor]:
    """(loss, total) without values, for rows of this shape."""
    acc, reduced = acc_dtype(input.dtype), reduction != "none"
    loss = input.new_empty(() if reduced else shape, dtype=acc if float32_loss else input.dtype)
    return loss, input.new_empty(() if reduced else (0,), dtype=acc)


def float32_loss(position: int) -> Any:
    """The autocast rule of a loss whose argument at `position` says so: the loss is float32, as PyTorch's under
    autocast; what it is computed from is read as it is, without an upcast copy."""

    def rule(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        return (*args[:position], True, *args[position + 1 :])

    return rule
