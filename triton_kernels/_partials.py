"""The second stage of every two-stage sum: rows of partial sums, added in order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import row_block, tl_acc


@triton.jit
def _sum_partials_kernel(
    partials_ptr, output_ptr, count, cols, ACC: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr
):
    col = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = col < cols
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, count, STEP):
        row = start + tl.arange(0, STEP).to(tl.int64)
        at = row[:, None] * cols + col[None, :]
        total += tl.sum(tl.load(partials_ptr + at, (row < count)[:, None] & mask[None, :], 0.0), 0)
    tl.store(output_ptr + col, total.to(output_ptr.dtype.element_ty), mask)


def sum_partials(partials: Tensor, output: Tensor) -> None:
    """output[c] = the sum of partials[:, c], sixteen at a time in order: fixed, and closer than one after the other."""
    count, cols = partials.shape
    if cols == 0:
        return
    block = row_block(cols, 256)
    grid = (triton.cdiv(cols, block),)
    _sum_partials_kernel[grid](partials, output, count, cols, ACC=tl_acc(partials.dtype), STEP=16, BLOCK=block)
