"""What the Triton products share: the order of tiles, and the epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from warpwright.triton_kernels._activation import activate
from warpwright.triton_kernels._common import rounded


@triton.jit
def tile_of(pid, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    # Row by row, or down a band of GROUP_M rows first: the tiles that run at once then share more of what L2 holds.
    if GROUP_M == 1:
        tile_m, tile_n = pid // tiles_n, pid % tiles_n
    else:
        first = pid // (GROUP_M * tiles_n) * GROUP_M
        height = tl.minimum(tiles_m - first, GROUP_M)
        within = pid % (GROUP_M * tiles_n)
        tile_m, tile_n = first + within % height, within // height
    return tile_m, tile_n


@triton.jit
def store_tile(
    acc, row, col, m, n, bias_ptr, residual_ptr, residual_row, residual_col, output_ptr, preact_ptr,
    alpha, beta, output_scale,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE: tl.constexpr, ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The epilogue, and the store of a tile of sums with its rows and columns."""
    inside = (row[:, None] < m) & (col[None, :] < n)
    acc *= alpha
    if HAS_BIAS:
        acc += tl.load(bias_ptr + col, col < n, 0.0).to(ACC)[None, :]
    if HAS_RESIDUAL:
        at = row[:, None] * residual_row + col[None, :] * residual_col
        acc += beta * tl.load(residual_ptr + at, inside, 0.0).to(ACC)
    at = row[:, None] * n + col[None, :]
    value = activate(acc, ACTIVATION)
    if SAVE == "preact":
        tl.store(preact_ptr + at, rounded(acc, preact_ptr.dtype.element_ty, UPCAST), inside)
    elif SAVE == "value":
        tl.store(preact_ptr + at, rounded(value, preact_ptr.dtype.element_ty, UPCAST), inside)
    value *= output_scale
    if LIMIT > 0:  # What is too large for 8 bits becomes the largest number.
        value = tl.where(value > LIMIT, LIMIT, tl.where(value < -LIMIT, -LIMIT, value))
    tl.store(output_ptr + at, rounded(value, output_ptr.dtype.element_ty, UPCAST), inside)
