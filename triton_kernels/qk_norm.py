"""QK norm with rotary embedding. Forward takes one program a head, backward one a group of heads, with the sums of its
weight gradient in registers; a second kernel adds the groups in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import acc_dtype, tl_acc
from warpwright.triton_kernels._partials import sum_partials

# Groups of heads: fixed, so that they are summed in the same order everywhere.
MAX_PARTIALS = 1024


@triton.jit
def _columns(head_dim, pairs, INTERLEAVED: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr):
    """The columns of the first and of the second element of each pair, and of the rest; and which are there."""
    pair = tl.arange(0, PAIRS).to(tl.int64)
    first = 2 * pair if INTERLEAVED else pair
    second = first + 1 if INTERLEAVED else pair + pairs
    rest = 2 * pairs + tl.arange(0, REST).to(tl.int64)
    return pair, first, second, rest, pair < pairs, rest < head_dim


@triton.jit
def _weight(weight_ptr, col, mask, weight_offset, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr):
    if HAS_WEIGHT:
        return tl.load(weight_ptr + col, mask, 0.0).to(ACC) + weight_offset
    return tl.full(col.shape, 1.0, ACC)


@triton.jit
def _qk_norm_forward_kernel(
    x_ptr, xb, xt, xh, xd, weight_ptr, cos_ptr, sin_ptr, table_batch, table_row, y_ptr, rstd_ptr,
    sequence, heads, head_dim, pairs, eps, weight_offset,
    INTERLEAVED: tl.constexpr, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # (batch, sequence, head)
    head, position, batch = row % heads, row // heads % sequence, row // heads // sequence
    x_ptr += batch * xb + position * xt + head * xh
    y_ptr += row * head_dim
    pair, first, second, rest, mask, rest_mask = _columns(head_dim, pairs, INTERLEAVED, PAIRS, REST)
    u = tl.load(x_ptr + first * xd, mask, 0.0).to(ACC)
    v = tl.load(x_ptr + second * xd, mask, 0.0).to(ACC)
    w = tl.load(x_ptr + rest * xd, rest_mask, 0.0).to(ACC)
    rstd = 1.0 / tl.sqrt((tl.sum(u * u + v * v, 0) + tl.sum(w * w, 0)) / head_dim + eps)
    tl.store(rstd_ptr + row, rstd)
    u *= rstd * _weight(weight_ptr, first, mask, weight_offset, HAS_WEIGHT, ACC)
    v *= rstd * _weight(weight_ptr, second, mask, weight_offset, HAS_WEIGHT, ACC)
    w *= rstd * _weight(weight_ptr, rest, rest_mask, weight_offset, HAS_WEIGHT, ACC)
    table = batch * table_batch + position * table_row + pair
    c = tl.load(cos_ptr + table, mask, 0.0).to(ACC)
    s = tl.load(sin_ptr + table, mask, 0.0).to(ACC)
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    tl.store(y_ptr + first, (u * c - v * s).to(dtype), mask)
    tl.store(y_ptr + second, (v * c + u * s).to(dtype), mask)
    tl.store(y_ptr + rest, w.to(dtype), rest_mask)


@triton.jit
def _qk_norm_backward_kernel(
    grad_ptr, gb, gt, gh, gd, x_ptr, xb, xt, xh, xd, weight_ptr, cos_ptr, sin_ptr, table_batch, table_row,
    rstd_ptr, output_ptr, partials_ptr, n_rows, sequence, heads, head_dim, pairs, weight_offset,
    INTERLEAVED: tl.constexpr, HAS_WEIGHT: tl.constexpr, NEED_INPUT: tl.constexpr, NEED_WEIGHT: tl.constexpr,
    ACC: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64)
    groups = tl.num_programs(0)
    pair, first, second, rest, mask, rest_mask = _columns(head_dim, pairs, INTERLEAVED, PAIRS, REST)
    first_weight = _weight(weight_ptr, first, mask, weight_offset, HAS_WEIGHT, ACC)
    second_weight = _weight(weight_ptr, second, mask, weight_offset, HAS_WEIGHT, ACC)
    rest_weight = _weight(weight_ptr, rest, rest_mask, weight_offset, HAS_WEIGHT, ACC)
    first_sum, second_sum = tl.zeros((PAIRS,), ACC), tl.zeros((PAIRS,), ACC)
    rest_sum = tl.zeros((REST,), ACC)
    for narrow_row in range(n_rows * group // groups, n_rows * (group + 1) // groups):
        row = tl.cast(narrow_row, tl.int64)
        head, position, batch = row % heads, row // heads % sequence, row // heads // sequence
        grad = grad_ptr + batch * gb + position * gt + head * gh
        x = x_ptr + batch * xb + position * xt + head * xh
        table = batch * table_batch + position * table_row + pair
        c = tl.load(cos_ptr + table, mask, 0.0).to(ACC)
        s = tl.load(sin_ptr + table, mask, 0.0).to(ACC)
        a = tl.load(grad + first * gd, mask, 0.0).to(ACC)
        b = tl.load(grad + second * gd, mask, 0.0).to(ACC)
        dw = tl.load(grad + rest * gd, rest_mask, 0.0).to(ACC)
        du, dv = a * c + b * s, b * c - a * s
        rstd = tl.load(rstd_ptr + row)
        u = tl.load(x + first * xd, mask, 0.0).to(ACC) * rstd
        v = tl.load(x + second * xd, mask, 0.0).to(ACC) * rstd
        w = tl.load(x + rest * xd, rest_mask, 0.0).to(ACC) * rstd
        first_sum += du * u
        second_sum += dv * v
        rest_sum += dw * w
        if NEED_INPUT:
            du *= first_weight
            dv *= second_weight
            dw *= rest_weight
            mean_dot = (tl.sum(du * u + dv * v, 0) + tl.sum(dw * w, 0)) / head_dim
            output = output_ptr + row * head_dim
            dtype: tl.constexpr = output_ptr.dtype.element_ty
            tl.store(output + first, ((du - u * mean_dot) * rstd).to(dtype), mask)
            tl.store(output + second, ((dv - v * mean_dot) * rstd).to(dtype), mask)
            tl.store(output + rest, ((dw - w * mean_dot) * rstd).to(dtype), rest_mask)
    if NEED_WEIGHT:
        partials_ptr += group * head_dim
        tl.store(partials_ptr + first, first_sum, mask)
        tl.store(partials_ptr + second, second_sum, mask)
        tl.store(partials_ptr + rest, rest_sum, rest_mask)


def _blocks(head_dim: int, pairs: int) -> dict[str, int]:
    rest = head_dim - 2 * pairs
    return {"PAIRS": triton.next_power_of_2(max(pairs, 1)), "REST": triton.next_power_of_2(max(rest, 1))}


def _table(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """The angles, and their strides from batch to batch and from position to position."""
    sequence, pairs = cos.shape[-2:]
    return cos.contiguous(), sin.contiguous(), sequence * pairs if cos.dim() == 3 else 0, pairs


def _forward(
    x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, interleaved: bool, eps: float, weight_offset: float
) -> tuple[Tensor, Tensor]:
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rstd = x.new_empty(x.shape[:3], dtype=acc_dtype(x.dtype))
    if rstd.numel() == 0:
        return output, rstd
    _, sequence, heads, head_dim = x.shape
    pairs = cos.shape[-1]
    _qk_norm_forward_kernel[(rstd.numel(),)](
        x, *x.stride(), x if weight is None else weight.contiguous(), *_table(cos, sin), output, rstd,
        sequence, heads, head_dim, pairs, eps, weight_offset,
        INTERLEAVED=interleaved, HAS_WEIGHT=weight is not None, ACC=tl_acc(x.dtype), **_blocks(head_dim, pairs),
        num_warps=1,
    )  # fmt: skip
    return output, rstd


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, rstd: Tensor, interleaved: bool,
    weight_offset: float, need_input: bool, need_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _, sequence, heads, head_dim = x.shape
    grad_input = torch.empty(x.shape if need_input else (0,), dtype=x.dtype, device=x.device)
    grad_weight = x.new_zeros(head_dim if need_weight else 0)
    if x.numel() == 0 or not (need_input or need_weight):
        return grad_input, grad_weight
    pairs = cos.shape[-1]
    groups = min(rstd.numel(), MAX_PARTIALS)
    partials = rstd.new_empty((groups, head_dim) if need_weight else (0, 0))
    _qk_norm_backward_kernel[(groups,)](
        grad, *grad.stride(), x, *x.stride(), x if weight is None else weight.contiguous(), *_table(cos, sin),
        rstd.contiguous(), grad_input, partials, rstd.numel(), sequence, heads, head_dim, pairs, weight_offset,
        INTERLEAVED=interleaved, HAS_WEIGHT=weight is not None, NEED_INPUT=need_input, NEED_WEIGHT=need_weight,
        ACC=tl_acc(x.dtype), **_blocks(head_dim, pairs), num_warps=1,
    )  # fmt: skip
    if need_weight:
        sum_partials(partials, grad_weight)
    return grad_input, grad_weight


def qk_norm_rotary(
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    eps: float,
    weight_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query_output, query_rstd = _forward(query, query_weight, cos, sin, interleaved, eps, weight_offset)
    key_output, key_rstd = _forward(key, key_weight, cos, sin, interleaved, eps, weight_offset)
    return query_output, key_output, query_rstd, key_rstd


def qk_norm_rotary_backward(
    grad_query: Tensor,
    grad_key: Tensor,
    query: Tensor,
    key: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    query_rstd: Tensor,
    key_rstd: Tensor,
    interleaved: bool,
    weight_offset: float,
    need_query: bool,
    need_key: bool,
    need_query_weight: bool,
    need_key_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_query, of_query_weight = _backward(
        grad_query, query, query_weight, cos, sin, query_rstd, interleaved, weight_offset, need_query, need_query_weight
    )
    of_key, of_key_weight = _backward(
        grad_key, key, key_weight, cos, sin, key_rstd, interleaved, weight_offset, need_key, need_key_weight
    )
    return of_query, of_key, of_query_weight, of_key_weight
