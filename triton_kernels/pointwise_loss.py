"""Losses of single elements: one pass, a program takes one block of one row; the sums of blocks are added in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import acc_dtype, interpreted, num_warps, rounded, row_block, rows, tl_acc
from warpwright.triton_kernels._loss import empty_loss, sum_losses

BLOCK_LIMIT = 2048


@triton.jit
def _log_one_plus(e):
    """log(1 + e) for e in [0, 1]: what the sum lost is made up for by the quotient."""
    seen = (1.0 + e) - 1.0
    return tl.where(seen == 0.0, e, tl.log(1.0 + e) * (e / tl.where(seen == 0.0, 1.0, seen)))


@triton.jit
def _softplus_of_minus(x):
    """log(1 + exp(-x)); NaN passes through."""
    return _log_one_plus(tl.exp(-tl.abs(x))) + tl.where(x > 0.0, 0.0, -x)


@triton.jit
def _loss(x, t, v, KIND: tl.constexpr):
    if KIND == "bce":
        y = (1.0 - t) * x + (1.0 + (v - 1.0) * t) * _softplus_of_minus(x)
    elif KIND == "kl":
        y = tl.where(t == 0.0, 0.0, t * tl.log(t)) - t * x
    else:
        y = tl.exp(t) * (t - x)
    return y


@triton.jit
def _of_input(x, t, v, KIND: tl.constexpr):
    if KIND == "bce":
        y = (1.0 + (v - 1.0) * t) / (1.0 + tl.exp(-x)) - v * t
    elif KIND == "kl":
        y = -t
    else:
        y = -tl.exp(t)
    return y


@triton.jit
def _of_target(x, t, v, KIND: tl.constexpr):
    if KIND == "bce":
        y = (v - 1.0) * _softplus_of_minus(x) - x
    elif KIND == "kl":
        y = tl.where(t == 0.0, 0.0, tl.log(t)) + t / t - x
    else:
        y = tl.exp(t) * (t - x) + tl.exp(t)
    return y


@triton.jit
def _forward_kernel(
    x_ptr, x_row, x_col, t_ptr, t_row, t_col, w_ptr, w_row, w_col, v_ptr, v_row, v_col, out_ptr, cols,
    KIND: tl.constexpr, HAS_W: tl.constexpr, HAS_V: tl.constexpr, SUM: tl.constexpr, ACC: tl.constexpr,
    INTERPRETED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(cols, BLOCK)
    row = tl.program_id(0).to(tl.int64) // blocks
    col = tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = col < cols
    x = tl.load(x_ptr + row * x_row + col * x_col, mask, 0.0).to(ACC)
    t = tl.load(t_ptr + row * t_row + col * t_col, mask, 0.0).to(ACC)
    v = tl.full((BLOCK,), 1.0, ACC)
    if HAS_V:
        v = tl.load(v_ptr + row * v_row + col * v_col, mask, 0.0).to(ACC)
    loss = _loss(x, t, v, KIND)
    if HAS_W:
        loss *= tl.load(w_ptr + row * w_row + col * w_col, mask, 0.0).to(ACC)
    if SUM:
        tl.store(out_ptr + tl.program_id(0), tl.sum(tl.where(mask, loss, 0.0), 0))
    else:
        tl.store(out_ptr + row * cols + col, rounded(loss, out_ptr.dtype.element_ty, INTERPRETED), mask)


@triton.jit
def _backward_kernel(
    grad_ptr, grad_row, grad_col, x_ptr, x_row, x_col, t_ptr, t_row, t_col, w_ptr, w_row, w_col, v_ptr, v_row, v_col,
    of_input_ptr, of_target_ptr, cols, factor, KIND: tl.constexpr, HAS_W: tl.constexpr, HAS_V: tl.constexpr,
    NEED_INPUT: tl.constexpr, NEED_TARGET: tl.constexpr, ACC: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(cols, BLOCK)
    row = tl.program_id(0).to(tl.int64) // blocks
    col = tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = col < cols
    scale = factor * tl.load(grad_ptr + row * grad_row + col * grad_col, mask, 0.0).to(ACC)
    x = tl.load(x_ptr + row * x_row + col * x_col, mask, 0.0).to(ACC)
    t = tl.load(t_ptr + row * t_row + col * t_col, mask, 0.0).to(ACC)
    v = tl.full((BLOCK,), 1.0, ACC)
    if HAS_V:
        v = tl.load(v_ptr + row * v_row + col * v_col, mask, 0.0).to(ACC)
    if HAS_W:
        scale *= tl.load(w_ptr + row * w_row + col * w_col, mask, 0.0).to(ACC)
    at = row * cols + col
    if NEED_INPUT:
        grad = scale * _of_input(x, t, v, KIND)
        tl.store(of_input_ptr + at, rounded(grad, of_input_ptr.dtype.element_ty, INTERPRETED), mask)
    if NEED_TARGET:
        grad = scale * _of_target(x, t, v, KIND)
        tl.store(of_target_ptr + at, rounded(grad, of_target_ptr.dtype.element_ty, INTERPRETED), mask)


def _as_rows(*tensors: Tensor | None) -> list[Tensor]:
    """Each as (rows, cols): one long row where all are contiguous. What is not there is the first one."""
    first = tensors[0]
    assert first is not None
    whole = all(t is None or t.is_contiguous() for t in tensors)
    row_ndim = first.dim() if whole else min(1, first.dim())
    return [rows(first if t is None else t, row_ndim) for t in tensors]


def _strided(matrices: list[Tensor]) -> list[Tensor | int]:
    return [part for m in matrices for part in (m, m.stride(0), m.stride(1))]


def _factor(input: Tensor, reduction: str) -> float:
    counts = {"mean": input.numel(), "batchmean": input.shape[0] if input.dim() > 0 else 1}
    count = counts.get(reduction, 1)
    return 1.0 / count if count else float("inf")  # Over nothing the mean is NaN: nothing times infinity.


def _forward(kind: str, tensors: tuple[Tensor | None, ...], reduction: str, float32_loss: bool) -> Tensor:
    input, _, weight, pos_weight = tensors
    assert input is not None
    loss, _, total = empty_loss(input, input.shape, reduction, float32_loss)
    matrices, summed = _as_rows(*tensors), reduction != "none"
    (n_rows, cols), block = matrices[0].shape, row_block(matrices[0].shape[1], BLOCK_LIMIT)
    programs = n_rows * triton.cdiv(cols, block)
    sums = torch.empty(programs, dtype=acc_dtype(input.dtype), device=input.device)
    if input.numel() > 0:
        _forward_kernel[(programs,)](
            *_strided(matrices), sums if summed else loss, cols, KIND=kind, HAS_W=weight is not None,
            HAS_V=pos_weight is not None, SUM=summed, ACC=tl_acc(input.dtype), INTERPRETED=interpreted(), BLOCK=block,
            num_warps=num_warps(block),
        )  # fmt: skip
    if summed:
        sums = sums if input.numel() > 0 else sums.new_zeros(0)
        sum_losses(sums, None, None, loss, total, 0, 0, "sum", _factor(input, reduction))
    return loss


def _backward(
    kind: str, grad_loss: Tensor, tensors: tuple[Tensor | None, ...], reduction: str, needs: tuple[bool, ...]
) -> tuple[Tensor, ...]:
    input, _, weight, pos_weight = tensors
    assert input is not None
    outputs = [torch.empty(input.shape if need else (0,), dtype=input.dtype, device=input.device) for need in needs]
    if input.numel() == 0 or not any(needs):
        return tuple(outputs)
    grad = grad_loss.expand(input.shape)
    *matrices, grads = _as_rows(*tensors, grad if reduction == "none" else input)
    n_rows, cols = matrices[0].shape
    if reduction != "none":
        grads = grad_loss.expand(n_rows, cols)
    block = row_block(cols, BLOCK_LIMIT)
    _backward_kernel[(n_rows * triton.cdiv(cols, block),)](
        *_strided([grads, *matrices]), *outputs, cols, _factor(input, reduction), KIND=kind, HAS_W=weight is not None,
        HAS_V=pos_weight is not None, NEED_INPUT=needs[0], NEED_TARGET=needs[1], ACC=tl_acc(input.dtype),
        INTERPRETED=interpreted(), BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip
    return tuple(outputs)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    float32_loss: bool,
) -> Tensor:
    return _forward("bce", (input, target, weight, pos_weight), reduction, float32_loss)


def binary_cross_entropy_with_logits_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    *needs: bool,
) -> tuple[Tensor, ...]:
    return _backward("bce", grad_loss, (input, target, weight, pos_weight), reduction, needs)


def kl_div(input: Tensor, target: Tensor, reduction: str, log_target: bool, float32_loss: bool) -> Tensor:
    return _forward("kl_log" if log_target else "kl", (input, target, None, None), reduction, float32_loss)


def kl_div_backward(
    grad_loss: Tensor, input: Tensor, target: Tensor, reduction: str, log_target: bool, *needs: bool
) -> tuple[Tensor, ...]:
    kind = "kl_log" if log_target else "kl"
    return _backward(kind, grad_loss, (input, target, None, None), reduction, needs)
