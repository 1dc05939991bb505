"""Matrix product with a fused epilogue, for any strides and sizes; linear's forward and both its gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._activation import activate
from warpwright.triton_kernels._common import interpreted, tl_acc


@triton.jit
def _gemm_kernel(
    a_ptr, a_row, a_col, b_ptr, b_row, b_col, bias_ptr, residual_ptr, residual_row, residual_col,
    output_ptr, preact_ptr, m, n, k,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SAVE_PREACT: tl.constexpr, ACTIVATION: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_n = tl.cdiv(n, BLOCK_N)
    pid = tl.program_id(0)
    row = (pid // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = (pid % tiles_n).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for start in range(0, k, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K).to(tl.int64)
        a_mask = (row[:, None] < m) & (inner[None, :] < k)
        b_mask = (col[None, :] < n) & (inner[:, None] < k)
        a = tl.load(a_ptr + row[:, None] * a_row + inner[None, :] * a_col, a_mask, 0.0)  # (BLOCK_M, BLOCK_K)
        b = tl.load(b_ptr + col[None, :] * b_row + inner[:, None] * b_col, b_mask, 0.0)  # (BLOCK_K, BLOCK_N)
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
    if SAVE_PREACT:
        tl.store(preact_ptr + at, acc.to(preact_ptr.dtype.element_ty), inside)
    tl.store(output_ptr + at, activate(acc, ACTIVATION).to(output_ptr.dtype.element_ty), inside)


def gemm(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    save_preact: bool = False,
) -> tuple[Tensor, Tensor]:
    """activation(a @ b.T + bias + residual) for a (m, k), b (n, k), and the pre-activation where it is asked for."""
    (m, k), n = a.shape, b.shape[0]
    output = torch.empty((m, n), dtype=a.dtype, device=a.device)
    preact = torch.empty((m, n) if save_preact else (0,), dtype=a.dtype, device=a.device)
    block_m, block_n, block_k = (32, 32, 64) if interpreted() else (64, 64, 32)
    tiles = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    if tiles == 0:
        return output, preact
    addend = output if residual is None else residual
    _gemm_kernel[(tiles,)](
        a, a.stride(0), a.stride(1), b, b.stride(0), b.stride(1),
        output if bias is None else bias.contiguous(), addend, addend.stride(0), addend.stride(1),
        output, preact, m, n, k,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, SAVE_PREACT=save_preact, ACTIVATION=activation,
        ACC=tl_acc(a.dtype), UPCAST=interpreted(), BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return output, preact
