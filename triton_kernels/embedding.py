"""Embedding: one program for each token, or row of the gradient, and block of columns.

An index outside of the weight gives NaN, has no gradient, and is never used as an address.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import acc_dtype, num_warps, row_block, rows, tl_acc

BLOCK_LIMIT = 2048
#: Tokens that are summed together, counted from a row's first one on: see csrc/kernels/embedding.h.
PIECE = 64


@triton.jit
def _forward_kernel(
    index_ptr, weight_ptr, weight_row, weight_col, out_ptr, num_embeddings, cols, blocks, BLOCK: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) // blocks
    col = tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + token).to(tl.int64)
    known = (index >= 0) & (index < num_embeddings)
    row = tl.load(weight_ptr + index * weight_row + col * weight_col, known & (col < cols), float("nan"))
    tl.store(out_ptr + token * cols + col, row, col < cols)


@triton.jit
def _sum_tokens(
    grad_ptr, grad_row, grad_col, order_ptr, begin, end, col, cols, ACC: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    total = tl.zeros((BLOCK,), ACC)
    for i in range(begin, end):
        token = tl.load(order_ptr + i)
        total += tl.load(grad_ptr + token * grad_row + col * grad_col, col < cols, 0.0).to(ACC)
    return total


@triton.jit
def _pieces_kernel(
    grad_ptr, grad_row, grad_col, keys_ptr, order_ptr, starts_ptr, pieces_ptr, num_embeddings, cols, blocks,
    PIECE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # At most one whole piece starts among any PIECE places of `order`, and contains the last of them.
    number = tl.program_id(0).to(tl.int64) // blocks
    col = tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)
    last = (number + 1) * PIECE - 1
    row = tl.load(keys_ptr + last)
    if row < num_embeddings:
        start, end = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
        begin = last - (last - start) % PIECE
        if (end - start > PIECE) & (begin + PIECE <= end):
            total = _sum_tokens(
                grad_ptr, grad_row, grad_col, order_ptr, begin, begin + PIECE, col, cols, ACC=ACC, BLOCK=BLOCK
            )
            tl.store(pieces_ptr + number * cols + col, total, col < cols)


@triton.jit
def _backward_kernel(
    grad_ptr, grad_row, grad_col, order_ptr, starts_ptr, pieces_ptr, out_ptr, cols, blocks,
    SCALE: tl.constexpr, PIECE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) // blocks
    col = tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)
    start, end = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    # A row of one piece is summed here, of more pieces the last one that is not whole.
    whole = tl.where(end - start > PIECE, (end - start) // PIECE, 0)
    total = tl.zeros((BLOCK,), ACC)
    for i in range(whole):
        number = (start + i * PIECE) // PIECE
        total += tl.load(pieces_ptr + number * cols + col, col < cols, 0.0)
    total += _sum_tokens(
        grad_ptr, grad_row, grad_col, order_ptr, start + whole * PIECE, end, col, cols, ACC=ACC, BLOCK=BLOCK
    )
    if SCALE:
        total = total / tl.maximum(end - start, 1).to(ACC)
    tl.store(out_ptr + row * cols + col, total.to(out_ptr.dtype.element_ty), col < cols)


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None, scale_grad_by_freq: bool) -> Tensor:
    num_embeddings, cols = weight.shape
    output = torch.empty((*input.shape, cols), dtype=weight.dtype, device=weight.device)
    if output.numel() == 0:
        return output
    block = row_block(cols, BLOCK_LIMIT)
    blocks = triton.cdiv(cols, block)
    _forward_kernel[(input.numel() * blocks,)](
        input.contiguous(), weight, weight.stride(0), weight.stride(1), output, num_embeddings, cols, blocks,
        BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip
    return output


def embedding_backward(
    grad_output: Tensor, input: Tensor, num_embeddings: int, padding_idx: int | None, scale_grad_by_freq: bool
) -> Tensor:
    cols = grad_output.shape[-1]
    grad_weight = torch.empty((num_embeddings, cols), dtype=grad_output.dtype, device=grad_output.device)
    if grad_weight.numel() == 0:
        return grad_weight
    index = input.reshape(-1).to(torch.int64)
    counts = (index >= 0) & (index < num_embeddings)
    if padding_idx is not None:
        counts &= index != padding_idx % num_embeddings
    keys, order = torch.where(counts, index, num_embeddings).sort(stable=True)
    starts = torch.searchsorted(keys, torch.arange(num_embeddings + 1, device=index.device))
    whole = index.numel() // PIECE
    acc = acc_dtype(grad_output.dtype)
    pieces = torch.empty((whole, cols), dtype=acc, device=grad_output.device)
    grad = rows(grad_output, 1)
    block = row_block(cols, BLOCK_LIMIT)
    blocks = triton.cdiv(cols, block)
    options = {"PIECE": PIECE, "ACC": tl_acc(grad_output.dtype), "BLOCK": block, "num_warps": num_warps(block)}
    if whole > 0:
        _pieces_kernel[(whole * blocks,)](
            grad, grad.stride(0), grad.stride(1), keys, order, starts, pieces, num_embeddings, cols, blocks, **options
        )
    _backward_kernel[(num_embeddings * blocks,)](
        grad, grad.stride(0), grad.stride(1), order, starts, pieces, grad_weight, cols, blocks,
        SCALE=scale_grad_by_freq, **options,
    )  # fmt: skip
    return grad_weight
