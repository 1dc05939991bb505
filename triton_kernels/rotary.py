"""Rotary embedding: one program a position and head, its pairs in registers.

Angles that are computed are those of csrc/kernels/rotary.h: turns of 2^64, so that the product with the position drops
whole turns without rounding.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import tl_acc


@triton.jit
def _cos_and_sin(angle, ACC: tl.constexpr):
    """The cosine and the sine of angles in turns of 2^64, int64: quarter turns, and a rest for two polynomials."""
    single: tl.constexpr = tl.float32 == ACC
    if single:
        quarter = ((angle + (1 << 61)) >> 62) & 3
        r = (angle - (quarter << 62)).to(tl.float32) * 2.0**-64
        x = r * 6.28125 + r * 0.00193530717958647692
        z = x * x
        s = x + x * z * (-0.166666672 + z * (0.00833332911 + z * (-0.000198393114 + z * 2.71811791e-06)))
        c = 1.0 - 0.5 * z + z * z * (0.0416666456 + z * (-0.00138873677 + z * 2.44384155e-05))
        cosine, sine = tl.where((quarter & 1) != 0, s, c), tl.where((quarter & 1) != 0, c, s)
        cosine = tl.where(((quarter + 1) & 2) != 0, -cosine, cosine)
        sine = tl.where((quarter & 2) != 0, -sine, sine)
    else:
        x = angle.to(tl.float64) * (6.283185307179586 * 2.0**-64)
        cosine, sine = tl.cos(x), tl.sin(x)
    return cosine, sine


@triton.jit
def _frequency(pair, pairs, LOG2_BASE: tl.constexpr):
    """Turns of 2^64 a position: base^(-pair / pairs) / (2 pi), its fraction."""
    turns = tl.exp2(pair.to(tl.float64) / pairs * -LOG2_BASE) * 0.15915494309189533577
    turns = turns - tl.floor(turns)
    # In two halves: the conversion to int64 knows no numbers from 2^63 on.
    high = tl.floor(turns * 2.0**32)
    return (high.to(tl.int64) << 32) + ((turns * 2.0**32 - high) * 2.0**32).to(tl.int64)


@triton.jit
def _rotary_kernel(
    x_ptr, xb, xt, xh, xd, cos_ptr, sin_ptr, table_batch, table_row, table_rows, positions_ptr, position_batch,
    position_at, y_ptr, sequence, heads, head_dim, pairs, LOG2_BASE: tl.constexpr, POSITIONS: tl.constexpr,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, ACC: tl.constexpr, PAIRS: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # (batch, sequence, head)
    head, place, batch = row % heads, row // heads % sequence, row // heads // sequence
    x_ptr += batch * xb + place * xt + head * xh
    y_ptr += row * head_dim
    pair = tl.arange(0, PAIRS).to(tl.int64)
    mask = pair < pairs
    position = place
    if POSITIONS:
        position = tl.load(positions_ptr + batch * position_batch + place * position_at)
    # A constant, because a number that is passed is a float32. None: angles come from the tables.
    if LOG2_BASE is not None:
        c, s = _cos_and_sin(position * _frequency(pair, pairs, LOG2_BASE), ACC)
    else:
        known = (position >= 0) & (position < table_rows)
        table = batch * table_batch + position * table_row + pair
        c = tl.load(cos_ptr + table, mask & known, float("nan")).to(ACC)
        s = tl.load(sin_ptr + table, mask & known, float("nan")).to(ACC)
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


def _rotate(
    input: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    positions: Tensor | None,
    base: float | None,
    rotary_dim: int | None,
    interleaved: bool,
    inverse: bool,
) -> Tensor:
    output = torch.empty(input.shape, dtype=input.dtype, device=input.device)
    if input.numel() == 0:
        return output
    batch, sequence, heads, head_dim = input.shape
    table_batch = table_rows = 0
    if cos is not None and sin is not None:
        cos, sin = cos.contiguous(), sin.contiguous()
        table_rows, pairs = cos.shape[-2:]
        table_batch = table_rows * pairs if cos.dim() == 3 else 0
    else:
        pairs = (head_dim if rotary_dim is None else rotary_dim) // 2
    rest = head_dim - 2 * pairs
    position_strides = (0, 0) if positions is None else (0, *positions.stride())[-2:]
    _rotary_kernel[(batch * sequence * heads,)](
        input, *input.stride(), cos, sin, table_batch, pairs, table_rows, positions, *position_strides, output,
        sequence, heads, head_dim, pairs,
        LOG2_BASE=None if base is None else math.log2(base), POSITIONS=positions is not None, INTERLEAVED=interleaved,
        INVERSE=inverse, ACC=tl_acc(input.dtype), PAIRS=triton.next_power_of_2(max(pairs, 1)),
        REST=triton.next_power_of_2(rest) if rest else 0, num_warps=1,
    )  # fmt: skip
    return output


def _rotate_both(
    inverse: bool, input: Tensor, key: Tensor | None, *angles: Tensor | float | int | bool | None
) -> tuple[Tensor, Tensor]:
    key_output = input.new_empty(0) if key is None else _rotate(key, *angles, inverse)
    return _rotate(input, *angles, inverse), key_output


def rotary_embedding(
    input: Tensor,
    key: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    positions: Tensor | None,
    base: float | None,
    rotary_dim: int | None,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    return _rotate_both(False, input, key, cos, sin, positions, base, rotary_dim, interleaved)


def rotary_embedding_backward(
    grad_output: Tensor,
    grad_key: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    positions: Tensor | None,
    base: float | None,
    rotary_dim: int | None,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    return _rotate_both(True, grad_output, grad_key, cos, sin, positions, base, rotary_dim, interleaved)
