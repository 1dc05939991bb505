"""Rotary embedding: one program a position and head, its pairs in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import tl_acc


@triton.jit
def _rotary_kernel(
    x_ptr, xb, xt, xh, xd, cos_ptr, sin_ptr, table_batch, table_row, y_ptr, sequence, heads, head_dim, pairs,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, ACC: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # (batch, sequence, head)
    head, position, batch = row % heads, row // heads % sequence, row // heads // sequence
    x_ptr += batch * xb + position * xt + head * xh
    y_ptr += row * head_dim
    pair = tl.arange(0, PAIRS).to(tl.int64)
    mask = pair < pairs
    table = batch * table_batch + position * table_row + pair
    c = tl.load(cos_ptr + table, mask, 0.0).to(ACC)
    s = tl.load(sin_ptr + table, mask, 0.0).to(ACC)
    if INVERSE:
        s = -s
    first = 2 * pair if INTERLEAVED else pair
    second = first + 1 if INTERLEAVED else pair + pairs
    u = tl.load(x_ptr + first * xd, mask, 0.0).to(ACC)
    v = tl.load(x_ptr + second * xd, mask, 0.0).to(ACC)
    tl.store(y_ptr + first, (u * c - v * s).to(y_ptr.dtype.element_ty), mask)
    tl.store(y_ptr + second, (v * c + u * s).to(y_ptr.dtype.element_ty), mask)
    if REST > 0:
        rest = 2 * pairs + tl.arange(0, REST).to(tl.int64)
        tl.store(y_ptr + rest, tl.load(x_ptr + rest * xd, rest < head_dim, 0.0), rest < head_dim)


def _rotate(input: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool) -> Tensor:
    output = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    if input.numel() == 0:
        return output
    batch, sequence, heads, head_dim = input.shape
    pairs = cos.shape[-1]
    rest = head_dim - 2 * pairs
    table_batch = sequence * pairs if cos.dim() == 3 else 0
    _rotary_kernel[(batch * sequence * heads,)](
        input, *input.stride(), cos.contiguous(), sin.contiguous(), table_batch, pairs, output,
        sequence, heads, head_dim, pairs,
        INTERLEAVED=interleaved, INVERSE=inverse, ACC=tl_acc(input.dtype),
        PAIRS=triton.next_power_of_2(max(pairs, 1)), REST=triton.next_power_of_2(rest) if rest else 0, num_warps=1,
    )  # fmt: skip
    return output


def rotary_embedding(input: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    return _rotate(input, cos, sin, interleaved, inverse=False)


def rotary_embedding_backward(grad_output: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    return _rotate(grad_output, cos, sin, interleaved, inverse=True)
