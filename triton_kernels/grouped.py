"""Grouped products: tiles find their group on the device, from the groups' ends; the host never waits for these."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright._check import needs_preact
from warpwright.triton_kernels._activation import activate
from warpwright.triton_kernels._common import interpreted, tl_acc
from warpwright.triton_kernels._epilogue import epilogue_grads


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _ends(offsets_ptr, offset_step, groups, rows, BEFORE: tl.constexpr, GROUPS: tl.constexpr):
    """Where each group ends, or with BEFORE = 1 the one before it: where it starts. The rows of no group are one more.
    An offset that lies below an earlier one counts as that."""
    group = tl.arange(0, GROUPS) - BEFORE
    given = tl.load(offsets_ptr + group * offset_step, (group >= 0) & (group < groups), 0)
    given = tl.where(group == groups, rows, tl.minimum(tl.maximum(given, 0), rows))
    return tl.associative_scan(given, 0, _larger)


@triton.jit
def _at(values, index, GROUPS: tl.constexpr):
    """Element `index` of what is not negative."""
    return tl.max(tl.where(tl.arange(0, GROUPS) == index, values, 0), 0)


@triton.jit
def _grouped_kernel(
    a_ptr, a_row, a_col, b_ptr, b_group, b_row, b_col, offsets_ptr, offset_step, bias_ptr, output_ptr, preact_ptr,
    groups, rows, n, k,
    HAS_BIAS: tl.constexpr, SAVE: tl.constexpr, ACTIVATION: tl.constexpr, GROUPS: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(n, BLOCK_N)
    index = tl.program_id(0) // tiles_n
    starts = _ends(offsets_ptr, offset_step, groups, rows, 1, GROUPS)
    ends = _ends(offsets_ptr, offset_step, groups, rows, 0, GROUPS)
    tiles = tl.cdiv(ends - starts, BLOCK_M)
    last = tl.cumsum(tiles, 0)  # One past each group's tiles.
    group = tl.sum((last <= index).to(tl.int32), 0)
    if group <= groups:
        row0 = _at(starts, group, GROUPS) + (index - _at(last - tiles, group, GROUPS)) * BLOCK_M
        end = _at(ends, group, GROUPS)
        row = row0.to(tl.int64) + tl.arange(0, BLOCK_M)
        col = (tl.program_id(0) % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        some = group < groups  # Or it is a tile of zeros.
        wide_group = tl.minimum(group, groups - 1).to(tl.int64)
        b_ptr += wide_group * b_group
        acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for start in range(0, tl.where(some, k, 0), BLOCK_K):
            inner = start + tl.arange(0, BLOCK_K).to(tl.int64)
            a_mask = (row[:, None] < end) & (inner[None, :] < k)
            b_mask = (col[None, :] < n) & (inner[:, None] < k)
            a = tl.load(a_ptr + row[:, None] * a_row + inner[None, :] * a_col, a_mask, 0.0)  # (BLOCK_M, BLOCK_K)
            b = tl.load(b_ptr + col[None, :] * b_row + inner[:, None] * b_col, b_mask, 0.0)  # (BLOCK_K, BLOCK_N)
            if UPCAST:
                a = a.to(ACC)
                b = b.to(ACC)
            acc += tl.dot(a, b, input_precision="ieee", out_dtype=ACC)
        if HAS_BIAS:
            acc += tl.load(bias_ptr + wide_group * n + col, some & (col < n), 0.0).to(ACC)[None, :]
        inside = (row[:, None] < end) & (col[None, :] < n)
        at = row[:, None] * n + col[None, :]
        if SAVE:
            tl.store(preact_ptr + at, acc.to(preact_ptr.dtype.element_ty), inside)
        value = tl.where(some, activate(acc, ACTIVATION), 0.0)
        tl.store(output_ptr + at, value.to(output_ptr.dtype.element_ty), inside)


@triton.jit
def _weight_grad_kernel(
    a_ptr, a_row, a_col, b_ptr, b_row, b_col, offsets_ptr, offset_step, output_ptr, groups, rows, m, n,
    GROUPS: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(n, BLOCK_N)
    tiles = tl.cdiv(m, BLOCK_M) * tiles_n
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    first = _at(_ends(offsets_ptr, offset_step, groups, rows, 1, GROUPS), group, GROUPS)
    end = _at(_ends(offsets_ptr, offset_step, groups, rows, 0, GROUPS), group, GROUPS)
    row = (tile // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = (tile % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for start in range(first, end, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K).to(tl.int64)
        a_mask = (row[:, None] < m) & (inner[None, :] < end)
        b_mask = (col[None, :] < n) & (inner[:, None] < end)
        a = tl.load(a_ptr + row[:, None] * a_col + inner[None, :] * a_row, a_mask, 0.0)  # (BLOCK_M, BLOCK_K)
        b = tl.load(b_ptr + col[None, :] * b_col + inner[:, None] * b_row, b_mask, 0.0)  # (BLOCK_K, BLOCK_N)
        if UPCAST:
            a = a.to(ACC)
            b = b.to(ACC)
        acc += tl.dot(a, b, input_precision="ieee", out_dtype=ACC)
    inside = (row[:, None] < m) & (col[None, :] < n)
    at = (group.to(tl.int64) * m + row[:, None]) * n + col[None, :]
    tl.store(output_ptr + at, acc.to(output_ptr.dtype.element_ty), inside)


@triton.jit
def _bias_grad_kernel(
    grad_ptr, grad_row, grad_col, offsets_ptr, offset_step, output_ptr, groups, rows, n,
    GROUPS: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    first = _at(_ends(offsets_ptr, offset_step, groups, rows, 1, GROUPS), group, GROUPS)
    end = _at(_ends(offsets_ptr, offset_step, groups, rows, 0, GROUPS), group, GROUPS)
    col = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N,), ACC)
    for start in range(first, end, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M).to(tl.int64)
        mask = (row[:, None] < end) & (col[None, :] < n)
        grad = tl.load(grad_ptr + row[:, None] * grad_row + col[None, :] * grad_col, mask, 0.0)
        total += tl.sum(grad.to(ACC), 0)
    tl.store(output_ptr + group.to(tl.int64) * n + col, total.to(output_ptr.dtype.element_ty), col < n)


def _tile() -> dict[str, int]:
    """Fixed on a GPU; the interpreter takes its time by the call, so there a tile holds more."""
    return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64 if interpreted() else 32}


def _group_block(offsets: Tensor) -> int:
    """Groups, and the rows of none as one more, that a program looks at."""
    return triton.next_power_of_2(offsets.shape[0] + 1)


def _product(
    a: Tensor, b: Tensor, offsets: Tensor, bias: Tensor | None, activation: str, save: bool
) -> tuple[Tensor, Tensor]:
    """activation(a @ b[group].T + bias[group]) of each row, and the pre-activation if `save`."""
    (rows, k), (groups, n) = a.shape, b.shape[:2]
    output = a.new_empty(rows, n)
    preact = torch.empty_like(output) if save else a.new_empty(0)
    if output.numel() == 0:
        return output, preact
    if groups == 0:
        return output.zero_(), preact.zero_()
    tile = _tile()
    # Each group may have a tile that is not full, and so may the rows of none.
    most = (rows + min(rows, groups + 1) * (tile["BLOCK_M"] - 1)) // tile["BLOCK_M"]
    bias_or_any = output if bias is None else bias.contiguous()
    _grouped_kernel[(most * triton.cdiv(n, tile["BLOCK_N"]),)](
        a, *a.stride(), b, *b.stride(), offsets, *offsets.stride(), bias_or_any, output, preact, groups, rows, n, k,
        HAS_BIAS=bias is not None, SAVE=save, ACTIVATION=activation, GROUPS=_group_block(offsets),
        ACC=tl_acc(a.dtype), UPCAST=interpreted(), **tile,
    )  # fmt: skip
    return output, preact


def _weight_grad(grad: Tensor, input: Tensor, offsets: Tensor) -> Tensor:
    (rows, m), n, groups = grad.shape, input.shape[1], offsets.shape[0]
    result = grad.new_empty(groups, m, n)
    if result.numel() == 0:
        return result
    tile = _tile()
    tiles = triton.cdiv(m, tile["BLOCK_M"]) * triton.cdiv(n, tile["BLOCK_N"])
    _weight_grad_kernel[(groups * tiles,)](
        grad, *grad.stride(), input, *input.stride(), offsets, *offsets.stride(), result, groups, rows, m, n,
        GROUPS=_group_block(offsets), ACC=tl_acc(grad.dtype), UPCAST=interpreted(), **tile,
    )  # fmt: skip
    return result


def _bias_grad(grad: Tensor, offsets: Tensor) -> Tensor:
    (rows, n), groups = grad.shape, offsets.shape[0]
    result = grad.new_empty(groups, n)
    if result.numel() == 0:
        return result
    _bias_grad_kernel[(groups, triton.cdiv(n, 64))](
        grad, *grad.stride(), offsets, *offsets.stride(), result, groups, rows, n,
        GROUPS=_group_block(offsets), ACC=tl_acc(grad.dtype), BLOCK_M=32, BLOCK_N=64,
    )  # fmt: skip
    return result


def grouped_matmul(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    activation: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    return _product(input, weight, offsets, bias, activation, save_preact and needs_preact(activation))


def grouped_matmul_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    saved: Tensor | None,
    activation: str,
    batch_invariant: bool,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad, _ = epilogue_grads(grad_output, saved, activation, True, False)
    return (
        _product(grad, weight.mT, offsets, None, "none", False)[0] if need_input else input.new_empty(0),
        _weight_grad(grad, input, offsets) if need_weight else input.new_empty(0),
        _bias_grad(grad, offsets) if need_bias else input.new_empty(0),
    )
