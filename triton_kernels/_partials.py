"""The second stage of every two-stage sum: rows of partial sums, added in order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import row_block, tl_acc


@triton.jit
def _sum_partials_kernel(partials_ptr, output_ptr, count, cols, ACC: tl.constexpr, BLOCK: tl.constexpr):
    col = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = col < cols
    total = tl.zeros((BLOCK,), ACC)
    for i in range(count):
        total += tl.load(partials_ptr + i * cols + col, mask, 0.0)
    tl.store(output_ptr + col, total.to(output_ptr.dtype.element_ty), mask)


def sum_partials(partials: Tensor, output: Tensor) -> None:
    """output[c] = partials[0, c] + partials[1, c] + ..., in that order."""
    count, cols = partials.shape
    if cols == 0:
        return
    block = row_block(cols, 512)
    grid = (triton.cdiv(cols, block),)
    _sum_partials_kernel[grid](partials, output, count, cols, ACC=tl_acc(partials.dtype), BLOCK=block)
