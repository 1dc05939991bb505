"""2:4 sparse weights. Triton has no sparse product: `linear_sparse24` makes tiles of the weight dense on their way to
`tl.dot`, and so reads half of it, but multiplies as much as a dense product does."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright._check import needs_preact
from warpwright.triton_kernels._activation import activate
from warpwright.triton_kernels._common import interpreted, rows, tl_acc
from warpwright.triton_kernels._epilogue import epilogue_grads, residual_grad
from warpwright.triton_kernels._gemm import gemm

_BLOCK = 256


@triton.jit
def _places(metadata_ptr, metadata_col, group, mask):
    """Where the two kept elements of each group are in it: 0 and 1 past the mask."""
    byte = tl.load(metadata_ptr + group // 2 * metadata_col, mask, 0x44).to(tl.int32)
    places = byte >> (group % 2 * 4).to(tl.int32)
    return places & 3, places >> 2 & 3


@triton.jit
def _dense(values_ptr, values_col, metadata_ptr, metadata_col, col, mask):
    """Elements `col` of dense rows, whose first elements the pointers point to."""
    group, place = col // 4, (col % 4).to(tl.int32)
    first, second = _places(metadata_ptr, metadata_col, group, mask)
    at = 2 * group + tl.where(place == second, 1, 0)
    kept = mask & ((place == first) | (place == second))
    return tl.load(values_ptr + at * values_col, kept, 0.0)


@triton.jit
def _magnitude(x):
    """NaN counts as an infinity."""
    return tl.where(x != x, float("inf"), tl.abs(x))


@triton.jit
def _prune_kernel(
    weight_ptr, weight_row, weight_col, values_ptr, metadata_ptr, k, ACC: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    # A byte of the metadata in each lane: two groups of four, or one at the end of a row.
    row = tl.program_id(0).to(tl.int64)
    byte = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    width = tl.cdiv(k, 8)
    metadata = tl.zeros((BLOCK,), tl.int32)
    for half in tl.static_range(2):
        col = 8 * byte + 4 * half
        mask = col < k
        four = weight_ptr + row * weight_row + col * weight_col
        m0 = _magnitude(tl.load(four, mask, 0.0).to(ACC))
        m1 = _magnitude(tl.load(four + weight_col, mask, 0.0).to(ACC))
        m2 = _magnitude(tl.load(four + 2 * weight_col, mask, 0.0).to(ACC))
        m3 = _magnitude(tl.load(four + 3 * weight_col, mask, 0.0).to(ACC))
        # How many are ahead of each: larger, or as large and earlier. The two with fewer than two are kept.
        keep0 = (m1 > m0).to(tl.int32) + (m2 > m0).to(tl.int32) + (m3 > m0).to(tl.int32) < 2
        keep1 = (m0 >= m1).to(tl.int32) + (m2 > m1).to(tl.int32) + (m3 > m1).to(tl.int32) < 2
        keep2 = (m0 >= m2).to(tl.int32) + (m1 >= m2).to(tl.int32) + (m3 > m2).to(tl.int32) < 2
        keep3 = (m0 >= m3).to(tl.int32) + (m1 >= m3).to(tl.int32) + (m2 >= m3).to(tl.int32) < 2
        first = tl.where(keep0, 0, tl.where(keep1, 1, 2))
        second = tl.where(keep3, 3, tl.where(keep2, 2, 1))
        out = values_ptr + row * (k // 2) + 4 * byte + 2 * half
        tl.store(out, tl.load(four + first * weight_col, mask), mask)
        tl.store(out + 1, tl.load(four + second * weight_col, mask), mask)
        metadata |= tl.where(mask, (first | second << 2) << (4 * half), 0)
    tl.store(metadata_ptr + row * width + byte, metadata.to(tl.uint8), byte < width)


@triton.jit
def _dense_kernel(
    values_ptr, values_row, values_col, metadata_ptr, metadata_row, metadata_col, dense_ptr, k, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values_ptr += row * values_row
    metadata_ptr += row * metadata_row
    dense = _dense(values_ptr, values_col, metadata_ptr, metadata_col, col, col < k)
    tl.store(dense_ptr + row * k + col, dense, col < k)


@triton.jit
def _kept_kernel(
    grad_ptr, grad_row, grad_col, metadata_ptr, metadata_row, metadata_col, out_ptr, kept, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < kept
    first, second = _places(metadata_ptr + row * metadata_row, metadata_col, at // 2, mask)
    col = at // 2 * 4 + tl.where(at % 2 == 0, first, second)
    tl.store(out_ptr + row * kept + at, tl.load(grad_ptr + row * grad_row + col * grad_col, mask), mask)


@triton.jit
def _linear_sparse24_kernel(
    input_ptr, input_row, input_col, values_ptr, values_row, values_col, metadata_ptr, metadata_row, metadata_col,
    bias_ptr, residual_ptr, residual_row, residual_col, output_ptr, preact_ptr, m, n, k,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE: tl.constexpr, ACTIVATION: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(n, BLOCK_N)
    row = (tl.program_id(0) // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = (tl.program_id(0) % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    values_ptr += col[None, :] * values_row
    metadata_ptr += col[None, :] * metadata_row
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for start in range(0, k, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K).to(tl.int64)
        a_mask = (row[:, None] < m) & (inner[None, :] < k)
        b_mask = (col[None, :] < n) & (inner[:, None] < k)
        a = tl.load(input_ptr + row[:, None] * input_row + inner[None, :] * input_col, a_mask, 0.0)
        b = _dense(values_ptr, values_col, metadata_ptr, metadata_col, inner[:, None], b_mask)  # (BLOCK_K, BLOCK_N)
        if UPCAST:
            a = a.to(ACC)
            b = b.to(ACC)
        acc += tl.dot(a, b, input_precision="ieee", out_dtype=ACC)
    inside = (row[:, None] < m) & (col[None, :] < n)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + col, col < n, 0.0).to(ACC)[None, :]
    if HAS_RESIDUAL:
        at = row[:, None] * residual_row + col[None, :] * residual_col
        acc += tl.load(residual_ptr + at, inside, 0.0).to(ACC)
    at = row[:, None] * n + col[None, :]
    if SAVE:
        tl.store(preact_ptr + at, acc.to(preact_ptr.dtype.element_ty), inside)
    tl.store(output_ptr + at, activate(acc, ACTIVATION).to(output_ptr.dtype.element_ty), inside)


def prune_24(weight: Tensor) -> tuple[Tensor, Tensor]:
    n, k = weight.shape
    values = weight.new_empty((n, k // 2))
    metadata = weight.new_empty((n, triton.cdiv(k, 8)), dtype=torch.uint8)
    if weight.numel():
        _prune_kernel[(n, triton.cdiv(metadata.shape[1], _BLOCK))](
            weight, weight.stride(0), weight.stride(1), values, metadata, k, ACC=tl_acc(weight.dtype), BLOCK=_BLOCK
        )
    return values, metadata


def dense_from_sparse24(values: Tensor, metadata: Tensor) -> Tensor:
    n, k = values.shape[0], 2 * values.shape[1]
    dense = values.new_empty((n, k))
    if dense.numel():
        _dense_kernel[(n, triton.cdiv(k, _BLOCK))](
            values, values.stride(0), values.stride(1), metadata, metadata.stride(0), metadata.stride(1), dense, k,
            BLOCK=_BLOCK,
        )  # fmt: skip
    return dense


def dense_from_sparse24_backward(grad_output: Tensor, metadata: Tensor) -> Tensor:
    n, kept = grad_output.shape[0], grad_output.shape[1] // 2
    grad_values = grad_output.new_empty((n, kept))
    if grad_values.numel():
        _kept_kernel[(n, triton.cdiv(kept, _BLOCK))](
            grad_output, grad_output.stride(0), grad_output.stride(1), metadata, metadata.stride(0),
            metadata.stride(1), grad_values, kept, BLOCK=_BLOCK,
        )  # fmt: skip
    return grad_values


def linear_sparse24(
    input: Tensor,
    values: Tensor,
    metadata: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    sizes = (*input.shape[:-1], values.shape[0])
    matrix = rows(input, 1)
    (m, k), n = matrix.shape, values.shape[0]
    keep = save_preact and needs_preact(activation)
    output = input.new_empty(sizes)
    preact = input.new_empty(sizes if keep else (0,))
    if output.numel() == 0:
        return output, preact
    bias_or_any = output if bias is None else bias.contiguous()
    addend = output.view(m, n) if residual is None else rows(residual, 1)
    block_m, block_n, block_k = (32, 32, 64) if interpreted() else (64, 64, 32)
    _linear_sparse24_kernel[(triton.cdiv(m, block_m) * triton.cdiv(n, block_n),)](
        matrix, matrix.stride(0), matrix.stride(1), values, values.stride(0), values.stride(1),
        metadata, metadata.stride(0), metadata.stride(1), bias_or_any, addend, addend.stride(0), addend.stride(1),
        output, preact, m, n, k, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, SAVE=keep,
        ACTIVATION=activation, ACC=tl_acc(input.dtype), UPCAST=interpreted(),
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=4, num_stages=3,
    )  # fmt: skip
    return output, preact


def linear_sparse24_backward(
    grad_output: Tensor,
    input: Tensor,
    values: Tensor,
    metadata: Tensor,
    saved: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    need_input: bool,
    need_values: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, ...]:
    grad = rows(grad_output, 1)
    saved = None if saved is None else rows(saved, 1)
    arithmetic = {"precision": precision, "batch_invariant": batch_invariant}
    need_preact = need_input or need_values or need_residual
    grad_preact, grad_bias = epilogue_grads(grad, saved, activation, need_preact, need_bias)
    grad_input, grad_values, grad_residual = (input.new_empty(0) for _ in range(3))
    if need_input:
        weight = dense_from_sparse24(values, metadata)
        grad_input = gemm(grad_preact, weight.t(), **arithmetic)[0].view(input.shape)
    if need_values:
        grad_values = dense_from_sparse24_backward(gemm(grad_preact.t(), rows(input, 1).t(), **arithmetic)[0], metadata)
    if need_residual:
        grad_residual = residual_grad(grad_preact, grad, grad_output.shape)
    return grad_input, grad_values, grad_bias, grad_residual
