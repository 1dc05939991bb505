"""Definitions of the scaled family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright.ops.scaled import SCALE_BLOCK
from warpwright.reference._activation import activate


def _by_row_and_block(scale: Tensor, rows: int, blocks: int) -> Tensor:
    """(rows, blocks): the scale of each row's elements in each block of k."""
    if scale.numel() == 1:
        return scale.reshape(1, 1).expand(rows, blocks)
    if scale.dim() == 1:
        scale = scale.unsqueeze(1)
    if scale.shape[0] != rows:
        scale = scale.repeat_interleave(SCALE_BLOCK, 0)[:rows]
    return scale.expand(rows, blocks)


def scaled_matmul(
    input: Tensor,
    other: Tensor,
    input_scale: Tensor,
    other_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
) -> Tensor:
    (m, k), n = input.shape, other.shape[0]
    if input.dtype == torch.int8:
        # float64 holds sums of integers up to 2^53.
        total = (input.double() @ other.double().t()).float()
        total = total * _by_row_and_block(input_scale, m, 1) * _by_row_and_block(other_scale, n, 1).t()
    else:
        blocks = -(-k // SCALE_BLOCK)
        a_scales, b_scales = _by_row_and_block(input_scale, m, blocks), _by_row_and_block(other_scale, n, blocks)
        pieces = zip(input.float().split(SCALE_BLOCK, 1), other.float().split(SCALE_BLOCK, 1), strict=True)
        total = input_scale.new_zeros(m, n)
        for i, (a, b) in enumerate(pieces if k else ()):
            total = total + a @ b.t() * a_scales[:, i, None] * b_scales[:, i]
    if bias is not None:
        total = total + bias
    if residual is not None:
        total = total + residual
    return activate(activation, total).to(out_dtype).contiguous()
