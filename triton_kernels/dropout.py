"""Dropout with an optional residual: one pass, each program takes one block of one row and makes its bits itself."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import num_warps, row_block, rows, tl_acc
from warpwright.triton_kernels._philox import random_words

BLOCK_LIMIT = 2048


@triton.jit
def _dropout_add_kernel(
    input_ptr, input_row, input_col, residual_ptr, residual_row, residual_col, seed_ptr, output_ptr, cols, threshold,
    scale, offset, HAS_RESIDUAL: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(cols, BLOCK)
    row = tl.program_id(0).to(tl.int64) // blocks
    start = tl.program_id(0).to(tl.int64) % blocks * BLOCK
    col = start + tl.arange(0, BLOCK)
    mask = col < cols
    words = random_words(tl.load(seed_ptr), row, start, offset, BLOCK)
    factor = tl.where(words.to(tl.int64) >= threshold, tl.cast(scale, ACC), 0.0)
    y = tl.load(input_ptr + row * input_row + col * input_col, mask, 0.0).to(ACC) * factor
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + row * residual_row + col * residual_col, mask, 0.0).to(ACC)
    tl.store(output_ptr + row * cols + col, y.to(output_ptr.dtype.element_ty), mask)


def dropout_add(input: Tensor, residual: Tensor | None, p: float, seed: Tensor, offset: int) -> Tensor:
    output = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    if input.numel() == 0:
        return output
    row_ndim = min(input.dim(), 1)
    x = rows(input, row_ndim)
    r = x if residual is None else rows(residual, row_ndim)
    n_rows, cols = x.shape
    block = max(row_block(cols, BLOCK_LIMIT), 4)
    threshold = min(int(p * 4294967296.0), 0xFFFFFFFF)
    _dropout_add_kernel[(n_rows * triton.cdiv(cols, block),)](
        x, x.stride(0), x.stride(1), r, r.stride(0), r.stride(1), seed, output, cols, threshold,
        0.0 if p == 1 else 1 / (1 - p), offset & 0xFFFFFFFF,
        HAS_RESIDUAL=residual is not None, ACC=tl_acc(input.dtype), BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip
    return output


def dropout_add_backward(grad_output: Tensor, p: float, seed: Tensor, offset: int) -> Tensor:
    return dropout_add(grad_output, None, p, seed, offset)
