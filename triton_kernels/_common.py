"""What the Triton kernels share."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor


def rows(tensor: Tensor, row_ndim: int) -> Tensor:
    """`tensor` as (rows, cols) with the last `row_ndim` dimensions in a row: a view where strides allow it."""
    cols = tensor.shape[tensor.dim() - row_ndim :].numel()
    return tensor.reshape(tensor.shape[: tensor.dim() - row_ndim].numel(), cols)


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 (the interpreter's gradient checks), else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_block(cols: int, limit: int = 8192) -> int:
    """Columns that a program holds at a time: a power of two, wide rows are walked in steps of it."""
    return min(triton.next_power_of_2(max(cols, 1)), limit)


def num_warps(block: int) -> int:
    """A warp for each 512 elements held, between 1 and 16."""
    return max(1, min(16, block // 512))


def tl_acc(dtype: torch.dtype) -> tl.dtype:
    """`acc_dtype` as a Triton type."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, whose dot is wrong for half types."""
    return (
        bool(triton.knobs.runtime.interpret) if hasattr(triton, "knobs") else os.environ.get("TRITON_INTERPRET") == "1"
    )


@triton.jit
def rounded(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """x, in float32 or float64, as a result is stored. The interpreter cuts float32 to bfloat16 where compiled code
    rounds, and results of several roundings would drift: there the cut is of what is rounded already."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = tl.where(x != x, x, bits.to(tl.float32, bitcast=True))
    return x.to(dtype)


@triton.jit
def round_even(x):
    """To the nearest integer, half to even, of numbers that int32 holds."""
    # In integers, where no compiler can cancel the addition that rounds.
    down = tl.floor(x)
    rest = x - down
    odd = (down.to(tl.int32) & 1) != 0
    return tl.where((rest > 0.5) | ((rest == 0.5) & odd), down + 1.0, down)
