"""Norm kernels: one program a row forward; backward one program a group of rows, then a fixed-order column sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import acc_dtype, num_warps, row_block, rows, tl_acc
from warpwright.triton_kernels._partials import sum_partials

# Row groups of the backward pass: fixed, so that weight gradients are summed in the same order everywhere.
MAX_PARTIALS = 128


@triton.jit
def _rms_norm_kernel(
    input_ptr, input_row, input_col,
    residual_ptr, residual_row, residual_col,
    weight_ptr, output_ptr, sum_ptr, rstd_ptr, cols, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((BLOCK,), ACC)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < cols
        h = tl.load(input_ptr + row * input_row + col * input_col, mask, 0.0)
        if HAS_RESIDUAL:
            other = tl.load(residual_ptr + row * residual_row + col * residual_col, mask, 0.0)
            h = (h.to(ACC) + other.to(ACC)).to(sum_ptr.dtype.element_ty)
            tl.store(sum_ptr + row * cols + col, h, mask)
        h = h.to(ACC)
        squares += h * h
    rstd = 1.0 / tl.sqrt(tl.sum(squares, 0) / cols + eps)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < cols
        h = tl.load(input_ptr + row * input_row + col * input_col, mask, 0.0)
        if HAS_RESIDUAL:
            other = tl.load(residual_ptr + row * residual_row + col * residual_col, mask, 0.0)
            h = (h.to(ACC) + other.to(ACC)).to(sum_ptr.dtype.element_ty)
        y = h.to(ACC) * rstd
        if HAS_WEIGHT:
            y *= tl.load(weight_ptr + col, mask, 0.0).to(ACC)
        tl.store(output_ptr + row * cols + col, y.to(output_ptr.dtype.element_ty), mask)


@triton.jit
def _rms_norm_backward_kernel(
    grad_ptr, grad_row, grad_col,
    extra_ptr, extra_row, extra_col,
    sum_ptr, sum_row, sum_col,
    weight_ptr, rstd_ptr, grad_input_ptr, partials_ptr, n_rows, cols,
    HAS_EXTRA: tl.constexpr, HAS_WEIGHT: tl.constexpr, NEED_INPUT: tl.constexpr, NEED_WEIGHT: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    groups = tl.num_programs(0)
    first = n_rows * group // groups
    last = n_rows * (group + 1) // groups
    if NEED_WEIGHT:
        for start in range(0, cols, BLOCK):
            col = start + tl.arange(0, BLOCK)
            tl.store(partials_ptr + group * cols + col, tl.zeros((BLOCK,), ACC), col < cols)
    for row in range(first, last):
        rstd = tl.load(rstd_ptr + row)
        dot = tl.zeros((BLOCK,), ACC)
        for start in range(0, cols, BLOCK):
            col = start + tl.arange(0, BLOCK)
            mask = col < cols
            dy = tl.load(grad_ptr + row * grad_row + col * grad_col, mask, 0.0).to(ACC)
            xhat = tl.load(sum_ptr + row * sum_row + col * sum_col, mask, 0.0).to(ACC) * rstd
            if NEED_WEIGHT:
                partial = tl.load(partials_ptr + group * cols + col, mask, 0.0)
                tl.store(partials_ptr + group * cols + col, partial + dy * xhat, mask)
            if HAS_WEIGHT:
                dy *= tl.load(weight_ptr + col, mask, 0.0).to(ACC)
            dot += dy * xhat
        mean = tl.sum(dot, 0) / cols
        if NEED_INPUT:
            for start in range(0, cols, BLOCK):
                col = start + tl.arange(0, BLOCK)
                mask = col < cols
                g = tl.load(grad_ptr + row * grad_row + col * grad_col, mask, 0.0).to(ACC)
                if HAS_WEIGHT:
                    g *= tl.load(weight_ptr + col, mask, 0.0).to(ACC)
                xhat = tl.load(sum_ptr + row * sum_row + col * sum_col, mask, 0.0).to(ACC) * rstd
                dx = (g - xhat * mean) * rstd
                if HAS_EXTRA:
                    dx += tl.load(extra_ptr + row * extra_row + col * extra_col, mask, 0.0).to(ACC)
                tl.store(grad_input_ptr + row * cols + col, dx.to(grad_input_ptr.dtype.element_ty), mask)


def rms_norm(
    input: Tensor, residual: Tensor | None, normalized_ndim: int, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    output = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    total = input.new_empty(input.shape if residual is not None else (0,))
    rstd = input.new_empty(input.shape[: input.dim() - normalized_ndim], dtype=acc_dtype(input.dtype))
    x = rows(input, normalized_ndim)
    r = x if residual is None else rows(residual, normalized_ndim)
    n_rows, cols = x.shape
    if n_rows == 0 or cols == 0:
        return output, total, rstd.fill_(eps**-0.5)
    block = row_block(cols)
    _rms_norm_kernel[(n_rows,)](
        x, x.stride(0), x.stride(1), r, r.stride(0), r.stride(1),
        weight.contiguous() if weight is not None else x, output, total, rstd, cols, eps,
        HAS_RESIDUAL=residual is not None, HAS_WEIGHT=weight is not None, ACC=tl_acc(input.dtype), BLOCK=block,
        num_warps=num_warps(block),
    )  # fmt: skip
    return output, total, rstd


def rms_norm_backward(
    grad_output: Tensor,
    grad_sum: Tensor | None,
    sum: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    normalized_ndim: int,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    grad_input = torch.empty(sum.shape if need_input else (0,), dtype=sum.dtype, device=sum.device)
    affine = sum.shape[sum.dim() - normalized_ndim :]
    grad_weight = sum.new_zeros(affine if need_weight else (0,))
    h = rows(sum, normalized_ndim)
    dy = rows(grad_output, normalized_ndim)
    extra = h if grad_sum is None else rows(grad_sum, normalized_ndim)
    n_rows, cols = h.shape
    if n_rows == 0 or cols == 0:
        return grad_input, grad_weight
    groups = min(n_rows, MAX_PARTIALS)
    partials = sum.new_empty((groups, cols) if need_weight else (0, 0), dtype=acc_dtype(sum.dtype))
    block = row_block(cols)
    _rms_norm_backward_kernel[(groups,)](
        dy, dy.stride(0), dy.stride(1), extra, extra.stride(0), extra.stride(1), h, h.stride(0), h.stride(1),
        weight.contiguous() if weight is not None else h, rstd.contiguous(), grad_input, partials, n_rows, cols,
        HAS_EXTRA=grad_sum is not None, HAS_WEIGHT=weight is not None, NEED_INPUT=need_input, NEED_WEIGHT=need_weight,
        ACC=tl_acc(sum.dtype), BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip
    if need_weight:
        sum_partials(partials, grad_weight)
    return grad_input, grad_weight
