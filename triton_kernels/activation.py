"""Gated activations: one pass, each program takes one block of one row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import num_warps, row_block, rows, tl_acc

BLOCK_LIMIT = 2048


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _swiglu_kernel(
    gate_ptr, gate_row, gate_col, up_ptr, up_row, up_col, output_ptr, cols, ACC: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    blocks = tl.cdiv(cols, BLOCK)
    row = tl.program_id(0).to(tl.int64) // blocks
    col = tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = col < cols
    x = tl.load(gate_ptr + row * gate_row + col * gate_col, mask, 0.0).to(ACC)
    up = tl.load(up_ptr + row * up_row + col * up_col, mask, 0.0).to(ACC)
    tl.store(output_ptr + row * cols + col, (x * _sigmoid(x) * up).to(output_ptr.dtype.element_ty), mask)


@triton.jit
def _swiglu_backward_kernel(
    grad_ptr, grad_row, grad_col, gate_ptr, gate_row, gate_col, up_ptr, up_row, up_col,
    grad_gate_ptr, grad_up_ptr, cols, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(cols, BLOCK)
    row = tl.program_id(0).to(tl.int64) // blocks
    col = tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = col < cols
    dy = tl.load(grad_ptr + row * grad_row + col * grad_col, mask, 0.0).to(ACC)
    x = tl.load(gate_ptr + row * gate_row + col * gate_col, mask, 0.0).to(ACC)
    up = tl.load(up_ptr + row * up_row + col * up_col, mask, 0.0).to(ACC)
    s = _sigmoid(x)
    dtype = grad_gate_ptr.dtype.element_ty
    tl.store(grad_gate_ptr + row * cols + col, (dy * up * s * (1.0 + x * (1.0 - s))).to(dtype), mask)
    tl.store(grad_up_ptr + row * cols + col, (dy * x * s).to(dtype), mask)


def _row_ndim(*tensors: Tensor) -> int:
    """All dimensions make one long row where every tensor is contiguous, else the last one makes a row."""
    return tensors[0].dim() if all(t.is_contiguous() for t in tensors) else 1


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    output = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if gate.numel() == 0:
        return output
    row_ndim = _row_ndim(gate, up)
    x, y = rows(gate, row_ndim), rows(up, row_ndim)
    n_rows, cols = x.shape
    block = row_block(cols, BLOCK_LIMIT)
    _swiglu_kernel[(n_rows * triton.cdiv(cols, block),)](
        x, x.stride(0), x.stride(1), y, y.stride(0), y.stride(1), output, cols,
        ACC=tl_acc(gate.dtype), BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip
    return output


def swiglu_backward(grad_output: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    grad_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    grad_up = torch.empty_like(grad_gate)
    if gate.numel() == 0:
        return grad_gate, grad_up
    row_ndim = _row_ndim(grad_output, gate, up)
    dy, x, y = rows(grad_output, row_ndim), rows(gate, row_ndim), rows(up, row_ndim)
    n_rows, cols = x.shape
    block = row_block(cols, BLOCK_LIMIT)
    _swiglu_backward_kernel[(n_rows * triton.cdiv(cols, block),)](
        dy, dy.stride(0), dy.stride(1), x, x.stride(0), x.stride(1), y, y.stride(0), y.stride(1),
        grad_gate, grad_up, cols, ACC=tl_acc(gate.dtype), BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip
    return grad_gate, grad_up
