"""Cross entropy: one program a row, in the layout the logits come in; log-probabilities stay in registers.

A target that is neither a class nor ignore_index gives NaN and is never used as an address.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import acc_dtype, num_warps, row_block, tl_acc


@triton.jit
def _forward_kernel(
    x_ptr, x_outer, x_inner, x_class, target_ptr, loss_ptr, lse_ptr, inner, cols, ignore_index, smoothing,
    SMOOTH: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row // inner * x_outer + row % inner * x_inner
    target = tl.load(target_ptr + row)
    if target == ignore_index:
        tl.store(loss_ptr + row, 0.0)
        tl.store(lse_ptr + row, 0.0)
    else:
        highest = tl.full((BLOCK,), float("-inf"), ACC)
        for start in range(0, cols, BLOCK):
            col = start + tl.arange(0, BLOCK).to(tl.int64)
            highest = tl.maximum(highest, tl.load(x_ptr + col * x_class, col < cols, float("-inf")).to(ACC))
        top = tl.max(highest, 0)
        total = tl.zeros((BLOCK,), ACC)
        gaps = tl.zeros((BLOCK,), ACC)
        for start in range(0, cols, BLOCK):
            col = start + tl.arange(0, BLOCK).to(tl.int64)
            x = tl.load(x_ptr + col * x_class, col < cols, float("-inf")).to(ACC)
            total += tl.exp(x - top)
            if SMOOTH:
                gaps += tl.where(col < cols, top - x, 0.0)
        log_sum = tl.log(tl.sum(total, 0))
        known = (target >= 0) & (target < cols)
        # The loss of class t is log_sum + (top - x[t]), which keeps its digits where top is large.
        loss = log_sum + (top - tl.load(x_ptr + target * x_class, known, float("nan")).to(ACC))
        if SMOOTH:
            loss = (1.0 - smoothing) * loss + smoothing * (log_sum + tl.sum(gaps, 0) / cols)
        tl.store(loss_ptr + row, loss.to(loss_ptr.dtype.element_ty))
        tl.store(lse_ptr + row, top + log_sum)


@triton.jit
def _reduce_kernel(
    row_loss_ptr, target_ptr, loss_ptr, valid_ptr, rows, ignore_index,
    MEAN: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    total = tl.zeros((BLOCK,), ACC)
    count = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK).to(tl.int64)
        total += tl.load(row_loss_ptr + row, row < rows, 0.0)
        target = tl.load(target_ptr + row, row < rows, ignore_index)
        count += (target != ignore_index).to(tl.int64)
    loss = tl.sum(total, 0)
    valid = tl.sum(count, 0)
    if MEAN:  # Without a row that counts 0 / 0, NaN, as in PyTorch.
        loss = loss / valid.to(ACC)
    tl.store(loss_ptr, loss.to(loss_ptr.dtype.element_ty))
    tl.store(valid_ptr, valid)


@triton.jit
def _backward_kernel(
    grad_ptr, grad_row, x_ptr, x_outer, x_inner, x_class, target_ptr, lse_ptr, valid_ptr, out_ptr, out_outer,
    out_inner, out_class, inner, cols, ignore_index, smoothing,
    MEAN: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row // inner * x_outer + row % inner * x_inner
    out_ptr += row // inner * out_outer + row % inner * out_inner
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    target = tl.load(target_ptr + row)
    scale = tl.load(grad_ptr + row * grad_row).to(ACC)
    if MEAN:
        scale = scale / tl.load(valid_ptr).to(ACC)
    scale = tl.where((target >= 0) & (target < cols), scale, float("nan"))
    lse = tl.load(lse_ptr + row)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(x_ptr + col * x_class, col < cols, 0.0).to(ACC)
        hard = tl.where(col == target, 1.0 - smoothing, 0.0)
        grad = scale * (tl.exp(x - lse) - smoothing / cols - hard)
        grad = tl.where(target == ignore_index, 0.0, grad)
        tl.store(out_ptr + col * out_class, grad.to(dtype), col < cols)


def _outer_class_inner(tensor: Tensor) -> Tensor:
    """(C,) as (1, C, 1), (N, C, d1, ...) as (N, C, d1 * ...): a view unless the d's do not share a stride."""
    return tensor.reshape(1, -1, 1) if tensor.dim() == 1 else tensor.reshape(*tensor.shape[:2], -1)


def _row_strides(tensor: Tensor) -> tuple[int, int, int]:
    outer, classes, inner = tensor.stride()
    return outer, inner, classes


def cross_entropy(
    input: Tensor, target: Tensor, ignore_index: int, reduction: str, label_smoothing: float, float32_loss: bool
) -> tuple[Tensor, Tensor, Tensor]:
    acc, reduced = acc_dtype(input.dtype), reduction != "none"
    loss = input.new_empty(() if reduced else target.shape, dtype=acc if float32_loss else input.dtype)
    lse = input.new_empty(target.shape, dtype=acc)
    valid = target.new_empty(() if reduced else (0,))
    row_loss = torch.empty_like(lse) if reduced else loss
    rows = target.numel()
    target = target.contiguous()
    if rows > 0:
        x = _outer_class_inner(input)
        cols = x.shape[1]
        block = row_block(cols)
        _forward_kernel[(rows,)](
            x, *_row_strides(x), target, row_loss, lse, x.shape[2], cols, ignore_index, label_smoothing,
            SMOOTH=label_smoothing > 0, ACC=tl_acc(input.dtype), BLOCK=block, num_warps=num_warps(block),
        )  # fmt: skip
    if reduced:
        _reduce_kernel[(1,)](
            row_loss, target, loss, valid, rows, ignore_index,
            MEAN=reduction == "mean", ACC=tl_acc(input.dtype), BLOCK=1024,
        )  # fmt: skip
    return loss, lse, valid


def cross_entropy_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    lse: Tensor,
    valid: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    grad_input = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    rows = target.numel()
    if rows == 0:
        return grad_input
    x, out = _outer_class_inner(input), _outer_class_inner(grad_input)
    cols = x.shape[1]
    block = row_block(cols)
    _backward_kernel[(rows,)](
        grad_loss.contiguous(), 1 if reduction == "none" else 0, x, *_row_strides(x), target.contiguous(),
        lse.contiguous(), valid, out, *_row_strides(out), x.shape[2], cols, ignore_index, label_smoothing,
        MEAN=reduction == "mean", ACC=tl_acc(input.dtype), BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip
    return grad_input
