"""Cross entropy: one program a row, in the layout the logits come in; log-probabilities stay in registers.

A target that is neither a class nor ignore_index gives NaN and is never used as an address. What a and mass are says
csrc/kernels/loss.h.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._activation import tanh
from warpwright.triton_kernels._common import acc_dtype, interpreted, num_warps, rounded, row_block, tl_acc
from warpwright.triton_kernels._loss import empty_loss, outer_class_inner, row_strides, sum_losses, weight_row

# ---- cross_entropy ----


@triton.jit
def _masses(
    target_ptr, target_class, weight_ptr, col, mask, spread, rest,
    SOFT: tl.constexpr, WEIGHTED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """a of the classes `col`, without what a class as a target adds; zero past the last one."""
    a = tl.where(mask, spread, 0.0).to(ACC)
    if SOFT:
        a += rest * tl.load(target_ptr + col * target_class, mask, 0.0).to(ACC)
    if WEIGHTED:
        a *= tl.load(weight_ptr + col, mask, 0.0)
    return a


@triton.jit
def _forward_kernel(
    x_ptr, x_outer, x_inner, x_class, target_ptr, target_outer, target_inner, target_class, weight_ptr,
    loss_ptr, max_ptr, log_sum_ptr, mass_ptr, inner, cols, ignore_index, smoothing, z_loss, cap,
    SOFT: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, CAPPED: tl.constexpr, ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row // inner * x_outer + row % inner * x_inner
    target_ptr += row // inner * target_outer + row % inner * target_inner
    target = ignore_index - 1 if SOFT else tl.load(target_ptr)
    if target == ignore_index:
        tl.store(loss_ptr + row, 0.0)
        tl.store(max_ptr + row, 0.0)
        tl.store(log_sum_ptr + row, 0.0)
        if WEIGHTED:
            tl.store(mass_ptr + row, 0.0)
    else:
        highest = tl.full((BLOCK,), float("-inf"), ACC)
        for start in range(0, cols, BLOCK):
            col = start + tl.arange(0, BLOCK).to(tl.int64)
            y = tl.load(x_ptr + col * x_class, col < cols, float("-inf")).to(ACC)
            if CAPPED:
                y = tl.where(col < cols, cap * tanh(y / cap), float("-inf"))
            highest = tl.maximum(highest, y)
        top = tl.max(highest, 0)
        total = tl.zeros((BLOCK,), ACC)
        gaps = tl.zeros((BLOCK,), ACC)
        masses = tl.zeros((BLOCK,), ACC)
        for start in range(0, cols, BLOCK):
            col = start + tl.arange(0, BLOCK).to(tl.int64)
            mask = col < cols
            y = tl.load(x_ptr + col * x_class, mask, float("-inf")).to(ACC)
            if CAPPED:
                y = tl.where(mask, cap * tanh(y / cap), float("-inf"))
            total += tl.exp(y - top)
            if SOFT or SMOOTH:
                a = _masses(target_ptr, target_class, weight_ptr, col, mask, smoothing / cols, 1.0 - smoothing,
                            SOFT, WEIGHTED, ACC)  # fmt: skip
                masses += a
                gaps += tl.where(mask, a * (top - y), 0.0)
        log_sum = tl.log(tl.sum(total, 0))
        mass = tl.sum(masses, 0)
        loss = mass * log_sum + tl.sum(gaps, 0)
        if not SOFT:
            known = (target >= 0) & (target < cols)
            # The loss of class t is log_sum + (top - y[t]), which keeps its digits where top is large.
            y = tl.load(x_ptr + target * x_class, known, float("nan")).to(ACC)
            if CAPPED:
                y = cap * tanh(y / cap)
            own = 1.0 - smoothing
            if WEIGHTED:
                own *= tl.load(weight_ptr + target, known, float("nan"))
            mass += own
            loss += own * (log_sum + (top - y))
        lse = top + log_sum
        loss += z_loss * lse * lse
        tl.store(loss_ptr + row, loss.to(loss_ptr.dtype.element_ty))
        tl.store(max_ptr + row, top)
        tl.store(log_sum_ptr + row, log_sum)
        if SOFT or WEIGHTED:
            tl.store(mass_ptr + row, mass)


@triton.jit
def _backward_kernel(
    grad_ptr, grad_row, x_ptr, x_outer, x_inner, x_class, target_ptr, target_outer, target_inner, target_class,
    weight_ptr, max_ptr, log_sum_ptr, mass_ptr, total_ptr, out_ptr, out_outer, out_inner, out_class, of_target_ptr,
    of_target_outer, of_target_inner, of_target_class, inner, cols, ignore_index, smoothing, z_loss, cap,
    SOFT: tl.constexpr, WEIGHTED: tl.constexpr, CAPPED: tl.constexpr, MEAN: tl.constexpr, NEED_INPUT: tl.constexpr,
    NEED_TARGET: tl.constexpr, ACC: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row // inner * x_outer + row % inner * x_inner
    target_ptr += row // inner * target_outer + row % inner * target_inner
    out_ptr += row // inner * out_outer + row % inner * out_inner
    of_target_ptr += row // inner * of_target_outer + row % inner * of_target_inner
    scale = tl.load(grad_ptr + row * grad_row).to(ACC)
    if MEAN:
        scale = scale / tl.load(total_ptr)
    target = ignore_index - 1 if SOFT else tl.load(target_ptr)
    top = tl.load(max_ptr + row)
    log_sum = tl.load(log_sum_ptr + row)
    factor = 1.0 + 2.0 * z_loss * (top + log_sum)
    if SOFT or WEIGHTED:
        factor = tl.load(mass_ptr + row) + 2.0 * z_loss * (top + log_sum)
    own = 1.0 - smoothing
    if not SOFT:
        known = (target >= 0) & (target < cols)
        scale = tl.where(known, scale, float("nan"))
        if WEIGHTED:
            own *= tl.load(weight_ptr + target, known, 0.0)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        mask = col < cols
        y = tl.load(x_ptr + col * x_class, mask, 0.0).to(ACC)
        if CAPPED:
            y = cap * tanh(y / cap)
        if NEED_INPUT:
            a = _masses(target_ptr, target_class, weight_ptr, col, mask, smoothing / cols, 1.0 - smoothing,
                        SOFT, WEIGHTED, ACC)  # fmt: skip
            if not SOFT:
                a += tl.where(col == target, own, 0.0)
            grad = scale * (tl.exp((y - top) - log_sum) * factor - a)
            if CAPPED:
                grad *= 1.0 - (y / cap) * (y / cap)
            grad = tl.where(target == ignore_index, 0.0, grad)
            tl.store(out_ptr + col * out_class, rounded(grad, out_ptr.dtype.element_ty, INTERPRETED), mask)
        if NEED_TARGET:
            grad = scale * (1.0 - smoothing) * (log_sum + (top - y))
            if WEIGHTED:
                grad *= tl.load(weight_ptr + col, mask, 0.0)
            tl.store(of_target_ptr + col * of_target_class,
                     rounded(grad, of_target_ptr.dtype.element_ty, INTERPRETED), mask)  # fmt: skip


def _target_rows(target: Tensor, inner: int) -> tuple[Tensor, tuple[int, int, int]]:
    """How a kernel finds the target of a row: a class, or the probabilities of the classes."""
    if target.is_floating_point():
        rows = outer_class_inner(target)
        return rows, row_strides(rows)
    return target.contiguous(), (inner, 1, 0)


def forward_rows(
    input: Tensor,
    target: Tensor,
    weights: Tensor | None,
    row_loss: Tensor,
    lse: Tensor,
    mass: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
) -> None:
    """Writes each row's loss, its maximum and the logarithm of its sum (lse), and its mass where that is not 1."""
    x, soft = outer_class_inner(input), target.is_floating_point()
    outer, cols, inner = x.shape
    places, strides = _target_rows(target, inner)
    block = row_block(cols)
    _forward_kernel[(outer * inner,)](
        x, *row_strides(x), places, *strides, lse if weights is None else weights, row_loss, lse[0], lse[1], mass,
        inner, cols, ignore_index, label_smoothing, z_loss, softcap, SOFT=soft, WEIGHTED=weights is not None,
        SMOOTH=label_smoothing > 0, CAPPED=softcap > 0, ACC=tl_acc(input.dtype), BLOCK=block,
        num_warps=num_warps(block),
    )  # fmt: skip


def backward_rows(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weights: Tensor | None,
    lse: Tensor,
    mass: Tensor,
    total: Tensor | None,
    grad_input: Tensor | None,
    grad_target: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
) -> None:
    """Writes the gradients that are not None; that of the input may be the input itself. `grad_loss` lies in one piece,
    and `total` is what a mean was divided by."""
    x, soft = outer_class_inner(input), target.is_floating_point()
    outer, cols, inner = x.shape
    out = x if grad_input is None else outer_class_inner(grad_input)
    of_target = x if grad_target is None else outer_class_inner(grad_target)
    places, strides = _target_rows(target, inner)
    block = row_block(cols)
    _backward_kernel[(outer * inner,)](
        grad_loss, 1 if grad_loss.dim() > 0 else 0, x, *row_strides(x), places, *strides,
        lse if weights is None else weights, lse[0], lse[1], mass, lse if total is None else total,
        out, *row_strides(out), of_target, *row_strides(of_target), inner, cols, ignore_index, label_smoothing, z_loss,
        softcap, SOFT=soft, WEIGHTED=weights is not None, CAPPED=softcap > 0, MEAN=total is not None,
        NEED_INPUT=grad_input is not None, NEED_TARGET=grad_target is not None, ACC=tl_acc(input.dtype),
        INTERPRETED=interpreted(), BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    float32_loss: bool,
) -> tuple[Tensor, ...]:
    soft, classes = target.is_floating_point(), input.shape[0 if input.dim() == 1 else 1]
    shape = input.shape[:1] + input.shape[2:] if input.dim() > 1 else input.shape[:0]
    loss, row_loss, total = empty_loss(input, shape, reduction, float32_loss)
    lse = input.new_empty((2, *shape), dtype=acc_dtype(input.dtype))
    mass = torch.empty_like(lse[0]) if soft or weight is not None else lse.new_empty(0)
    weights = weight_row(weight, input.dtype)
    options = label_smoothing, z_loss, softcap
    if lse.numel() > 0:
        forward_rows(input, target, weights, row_loss, lse, mass, ignore_index, *options)
    if reduction != "none":
        sum_losses(row_loss, None if soft else target.contiguous(), weights, loss, total, classes, ignore_index,
                   reduction)  # fmt: skip
    return loss, lse, mass, total


def cross_entropy_backward(
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
) -> tuple[Tensor, Tensor]:
    need_target = need_target and target.is_floating_point()
    grad_input, grad_target = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device) if need else None
        for t, need in ((input, need_input), (target, need_target))
    )
    if lse.numel() > 0 and (need_input or need_target):
        backward_rows(
            grad_loss.contiguous(), input, target, weight_row(weight, input.dtype), lse.contiguous(), mass.contiguous(),
            total if reduction == "mean" else None, grad_input, grad_target, ignore_index, label_smoothing, z_loss,
            softcap,
        )  # fmt: skip
    return (
        input.new_empty(0) if grad_input is None else grad_input,
        target.new_empty(0) if grad_target is None else grad_target,
    )


# ---- nll_loss ----


@triton.jit
def _nll_kernel(
    x_ptr, x_outer, x_inner, x_class, target_ptr, weight_ptr, loss_ptr, rows, inner, cols, ignore_index,
    WEIGHTED: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(target_ptr + row, row < rows, ignore_index)
    known = (target >= 0) & (target < cols)
    at = row // inner * x_outer + row % inner * x_inner + target * x_class
    # Rows past the last one and those that are ignored read nothing.
    counts = (row < rows) & (target != ignore_index)
    loss = -tl.load(x_ptr + at, known & counts, float("nan")).to(ACC)
    if WEIGHTED:
        loss *= tl.load(weight_ptr + target, known & counts, float("nan"))
    tl.store(loss_ptr + row, tl.where(counts, loss, 0.0).to(loss_ptr.dtype.element_ty), row < rows)


@triton.jit
def _nll_backward_kernel(
    grad_ptr, grad_row, out_ptr, out_outer, out_inner, out_class, target_ptr, weight_ptr, total_ptr, rows, inner, cols,
    ignore_index, WEIGHTED: tl.constexpr, MEAN: tl.constexpr, ACC: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(target_ptr + row, row < rows, ignore_index)
    known = (target >= 0) & (target < cols)
    counts = (row < rows) & (target != ignore_index)
    grad = -tl.load(grad_ptr + row * grad_row, counts, 0.0).to(ACC)
    if MEAN:
        grad = grad / tl.load(total_ptr)
    if WEIGHTED:
        grad *= tl.load(weight_ptr + target, known & counts, 0.0)
    grad = tl.where(known, grad, float("nan"))
    at = row // inner * out_outer + row % inner * out_inner + tl.where(known, target, 0) * out_class
    tl.store(out_ptr + at, rounded(grad, out_ptr.dtype.element_ty, INTERPRETED), counts)


_NLL_BLOCK = 256


def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, float32_loss: bool
) -> tuple[Tensor, Tensor]:
    loss, row_loss, total = empty_loss(input, target.shape, reduction, float32_loss)
    places, weights, rows = target.contiguous(), weight_row(weight, input.dtype), target.numel()
    x = outer_class_inner(input)
    if rows > 0:
        _nll_kernel[(triton.cdiv(rows, _NLL_BLOCK),)](
            x, *row_strides(x), places, row_loss if weights is None else weights, row_loss, rows, x.shape[2],
            x.shape[1], ignore_index, WEIGHTED=weights is not None, ACC=tl_acc(input.dtype), BLOCK=_NLL_BLOCK,
        )  # fmt: skip
    if reduction != "none":
        sum_losses(row_loss, places, weights, loss, total, x.shape[1], ignore_index, reduction)
    return loss, total


def nll_loss_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    total: Tensor,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    grad_input = torch.zeros(input.shape, dtype=input.dtype, device=input.device)
    rows, weights = target.numel(), weight_row(weight, input.dtype)
    if rows > 0:
        out = outer_class_inner(grad_input)
        _nll_backward_kernel[(triton.cdiv(rows, _NLL_BLOCK),)](
            grad_loss.contiguous(), 1 if reduction == "none" else 0, out, *row_strides(out), target.contiguous(),
            grad_loss if weights is None else weights, total, rows, out.shape[2], out.shape[1], ignore_index,
            WEIGHTED=weights is not None, MEAN=reduction == "mean", ACC=tl_acc(input.dtype), INTERPRETED=interpreted(),
            BLOCK=_NLL_BLOCK,
        )  # fmt: skip
    return grad_input
