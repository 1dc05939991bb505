"""Softmax and its logarithm: one program a row. Forward, blocks of columns are read once for the maximum and the sum
together, lane by lane, and once more to be written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import interpreted, num_warps, rounded, row_block, rows, tl_acc


@triton.jit
def _kept(mask_ptr, at_mask, col, visible, inside, KIND: tl.constexpr):
    keep = inside & (col < visible)
    if KIND == "keep":
        keep = keep & (tl.load(mask_ptr + at_mask, keep, 0) != 0)
    return keep


@triton.jit
def _logits(
    input_ptr, at_input, mask_ptr, at_mask, col, cols, visible, scale, KIND: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    keep = _kept(mask_ptr, at_mask, col, visible, col < cols, KIND)
    x = tl.load(input_ptr + at_input, col < cols, 0.0).to(ACC) * scale
    if KIND == "add":
        x += tl.load(mask_ptr + at_mask, col < cols, 0.0).to(ACC)
    return tl.where(keep, x, -float("inf")).to(ACC)


@triton.jit
def _visible(row, cols, causal_rows):
    """How many of the first columns of a row count."""
    visible = cols
    if causal_rows > 0:
        visible = (row % causal_rows + 1 + cols - causal_rows).to(tl.int32)
    return visible


@triton.jit
def _origin(highest):
    """What is subtracted of a maximum: not minus infinity, where the difference to it would be NaN."""
    return tl.where(highest == -float("inf"), 0.0, highest)


@triton.jit
def _softmax_kernel(
    input_ptr, input_row, input_col, mask_ptr, mask_row, mask_col, output_ptr, cols, causal_rows, scale,
    LOG: tl.constexpr, KIND: tl.constexpr, INTERPRETED: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    visible = _visible(row, cols, causal_rows)
    input_ptr += row * input_row
    mask_ptr += row * mask_row
    scale = tl.cast(scale, ACC)
    highest = tl.full((BLOCK,), -float("inf"), ACC)
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        x = _logits(input_ptr, col * input_col, mask_ptr, col * mask_col, col, cols, visible, scale, KIND, ACC)
        higher = tl.maximum(highest, x)
        total = total * tl.exp(highest - _origin(higher)) + tl.exp(x - _origin(higher))
        highest = higher
    row_max = tl.max(highest, 0)
    row_sum = tl.sum(total * tl.exp(highest - _origin(row_max)), 0)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        x = _logits(input_ptr, col * input_col, mask_ptr, col * mask_col, col, cols, visible, scale, KIND, ACC)
        y = x - row_max - tl.log(row_sum) if LOG else tl.exp(x - row_max) / row_sum
        y = rounded(y, output_ptr.dtype.element_ty, INTERPRETED)
        tl.store(output_ptr + row * cols + col, y, col < cols)


@triton.jit
def _softmax_backward_kernel(
    grad_ptr, grad_row, grad_col, output_ptr, output_row, output_col, mask_ptr, mask_row, mask_col, grad_input_ptr,
    cols, causal_rows, scale, LOG: tl.constexpr, KIND: tl.constexpr, INTERPRETED: tl.constexpr, ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    visible = _visible(row, cols, causal_rows)
    grad_ptr += row * grad_row
    output_ptr += row * output_row
    mask_ptr += row * mask_row
    scale = tl.cast(scale, ACC)
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        g = tl.load(grad_ptr + col * grad_col, col < cols, 0.0).to(ACC)
        if LOG:
            total += g
        else:
            total += g * tl.load(output_ptr + col * output_col, col < cols, 0.0).to(ACC)
    dot = tl.sum(total, 0)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        g = tl.load(grad_ptr + col * grad_col, col < cols, 0.0).to(ACC)
        y = tl.load(output_ptr + col * output_col, col < cols, 0.0).to(ACC)
        dx = g - tl.exp(y) * dot if LOG else y * (g - dot)
        keep = _kept(mask_ptr, col * mask_col, col, visible, col < cols, KIND)
        dx = tl.where(keep, dx * scale, 0.0)
        dx = rounded(dx, grad_input_ptr.dtype.element_ty, INTERPRETED)
        tl.store(grad_input_ptr + row * cols + col, dx, col < cols)


def _rows_along(tensor: Tensor, dim: int) -> Tensor:
    """(rows, cols) with `dim` in a row: a view where strides allow it."""
    return rows(tensor.movedim(dim, -1), 1)


def _back(result: Tensor, shape: torch.Size, dim: int) -> Tensor:
    """(rows, cols) as a contiguous tensor of `shape`, whose dimension `dim` is a row."""
    moved = list(shape)
    moved.append(moved.pop(dim))
    return result.reshape(moved).movedim(-1, dim).contiguous()


def _mask_rows(mask: Tensor | None, like: Tensor, dim: int) -> tuple[Tensor, str]:
    """The mask's rows, or any tensor for none, and what a mask of its dtype does."""
    if mask is None:
        return like.new_empty((1, 1)), "none"
    if mask.dtype != torch.bool:
        return _rows_along(mask.expand(like.shape), dim), "add"
    return _rows_along(mask.expand(like.shape).view(torch.uint8), dim), "keep"


def softmax(input: Tensor, mask: Tensor | None, dim: int, scale: float, causal: bool, log: bool) -> Tensor:
    if input.numel() == 0:
        return torch.empty(input.shape, dtype=input.dtype, device=input.device)
    x = _rows_along(input, dim)
    m, kind = _mask_rows(mask, input, dim)
    n_rows, cols = x.shape
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = row_block(cols)
    _softmax_kernel[(n_rows,)](
        x, x.stride(0), x.stride(1), m, m.stride(0), m.stride(1), output, cols,
        input.shape[-2] if causal else 0, scale,
        LOG=log, KIND=kind, INTERPRETED=interpreted(), ACC=tl_acc(input.dtype), BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip
    return _back(output, input.shape, dim)


def softmax_backward(
    grad_output: Tensor, output: Tensor, mask: Tensor | None, dim: int, scale: float, causal: bool, log: bool
) -> Tensor:
    if output.numel() == 0:
        return torch.empty(output.shape, dtype=output.dtype, device=output.device)
    dy, y = _rows_along(grad_output, dim), _rows_along(output, dim)
    m, kind = _mask_rows(mask, output, dim)
    kind = "none" if kind == "add" else kind
    n_rows, cols = y.shape
    grad_input = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    block = row_block(cols)
    _softmax_backward_kernel[(n_rows,)](
        dy, dy.stride(0), dy.stride(1), y, y.stride(0), y.stride(1), m, m.stride(0), m.stride(1), grad_input, cols,
        output.shape[-2] if causal else 0, scale,
        LOG=log, KIND=kind, INTERPRETED=interpreted(), ACC=tl_acc(output.dtype), BLOCK=block,
        num_warps=num_warps(block),
    )  # fmt: skip
    return _back(grad_input, output.shape, dim)
