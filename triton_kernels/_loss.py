"""What the losses share: how a tensor's classes are walked, and the sum or mean of the losses of rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import acc_dtype


def outer_class_inner(tensor: Tensor) -> Tensor:
    """(C,) as (1, C, 1), (N, C, d1, ...) as (N, C, d1 * ...): a view unless the d's do not share a stride."""
    return (
        tensor.reshape(1, -1, 1) if tensor.dim() == 1 else tensor.reshape(*tensor.shape[:2], tensor.shape[2:].numel())
    )


def row_strides(tensor: Tensor) -> tuple[int, int, int]:
    """Of an `outer_class_inner`: those that a row is found by, and that of the classes."""
    outer, classes, inner = tensor.stride()
    return outer, inner, classes


def weight_row(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Class weights in one piece, in what `dtype` is added up in."""
    return None if weight is None else weight.to(acc_dtype(dtype)).contiguous()


def empty_loss(input: Tensor, shape: torch.Size, reduction: str, float32_loss: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, row_loss, total) without values."""
    acc, reduced = acc_dtype(input.dtype), reduction != "none"
    loss = input.new_empty(() if reduced else shape, dtype=acc if float32_loss else input.dtype)
    row_loss = input.new_empty(shape, dtype=acc) if reduced else loss
    return loss, row_loss, input.new_empty(() if reduced else (0,), dtype=acc)


@triton.jit
def _sum_kernel(
    row_loss_ptr, target_ptr, weight_ptr, loss_ptr, total_ptr, rows, cols, ignore_index, factor,
    LOSS: tl.constexpr, ALIKE: tl.constexpr, WEIGHTED: tl.constexpr, MEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # In double: losses of both signs cancel, and the few additions a row cost nothing beside the row.
    sums = tl.zeros((BLOCK,), tl.float64)
    counted = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK).to(tl.int64)
        mask = row < rows
        if LOSS:
            sums += tl.load(row_loss_ptr + row, mask, 0.0).to(tl.float64)
        if ALIKE:
            counted += mask.to(tl.float64)
        else:
            target = tl.load(target_ptr + row, mask, ignore_index)
            own = mask & (target != ignore_index)
            if WEIGHTED:
                known = own & (target >= 0) & (target < cols)
                weight = tl.load(weight_ptr + target, known, 0.0).to(tl.float64)
                counted += tl.where(known, weight, tl.where(own, float("nan"), 0.0))
            else:
                counted += own.to(tl.float64)
    loss = tl.sum(sums, 0) * factor
    total = tl.sum(counted, 0)
    tl.store(total_ptr, total.to(total_ptr.dtype.element_ty))
    if MEAN:  # Without a row that counts 0 / 0, NaN, as in PyTorch.
        loss = loss / total
    if LOSS:
        # By way of total's type: Triton's interpreter cannot cast float64 to bfloat16.
        tl.store(loss_ptr, loss.to(total_ptr.dtype.element_ty).to(loss_ptr.dtype.element_ty))


def sum_losses(
    row_loss: Tensor | None,
    target: Tensor | None,
    weight: Tensor | None,
    loss: Tensor,
    total: Tensor,
    classes: int,
    ignore_index: int,
    reduction: str,
    factor: float = 1.0,
) -> None:
    """The sum times `factor`, or the mean over rows; without losses what a mean is divided by, without targets each row
    counts alike. Targets and weights lie in one piece."""
    known = next(t for t in (row_loss, target) if t is not None)
    _sum_kernel[(1,)](
        known if row_loss is None else row_loss, known if target is None else target,
        total if weight is None else weight, loss, total, known.numel(), classes, ignore_index, factor,
        LOSS=row_loss is not None, ALIKE=target is None, WEIGHTED=weight is not None, MEAN=reduction == "mean",
        BLOCK=1024,
    )  # fmt: skip
