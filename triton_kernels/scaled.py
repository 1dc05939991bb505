"""Products of 8-bit matrices that carry scales.

8-bit floats are multiplied as they are where the tensor cores know them and the output has 16 bits, else as float16,
which holds every one of them and keeps float32's digits. A step of k is a block of scales.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.ops.scaled import SCALE_BLOCK
from warpwright.triton_kernels._activation import activate
from warpwright.triton_kernels._common import interpreted
from warpwright.triton_kernels._gemm_tile import tile_of

#: What the kernel calls the formats of bytes.
_FORMATS = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2", torch.int8: "int8"}


@triton.jit
def _as_half(byte, FORMAT: tl.constexpr):
    # e5m2 is the upper half of a float16; e4m3 has one bit of exponent less, and one NaN.
    bits = byte.to(tl.int16)
    sign, magnitude = (bits & 0x80) << 8, bits & 0x7F
    if FORMAT == "e5m2":
        value = (sign | (magnitude << 8)).to(tl.float16, bitcast=True)
    else:
        value = (sign | (magnitude << 7)).to(tl.float16, bitcast=True) * 256.0
        value = tl.where(magnitude == 0x7F, float("nan"), value).to(tl.float16)
    return value


@triton.jit
def _operand(byte, FORMAT: tl.constexpr, NATIVE: tl.constexpr, UPCAST: tl.constexpr):
    if FORMAT == "int8":
        value = byte.to(tl.int8, bitcast=True)
    elif UPCAST:
        value = _as_half(byte, FORMAT).to(tl.float32)
    elif not NATIVE:
        value = _as_half(byte, FORMAT)
    elif FORMAT == "e4m3":
        value = byte.to(tl.float8e4nv, bitcast=True)
    else:
        value = byte.to(tl.float8e5, bitcast=True)
    return value


@triton.jit
def _scaled_kernel(
    a_ptr, a_row, a_col, b_ptr, b_row, b_col, a_scale_ptr, a_scale_row, a_scale_block,
    b_scale_ptr, b_scale_row, b_scale_block, bias_ptr, residual_ptr, residual_row, residual_col, output_ptr, m, n, k,
    A_FORMAT: tl.constexpr, B_FORMAT: tl.constexpr, A_BLOCKS: tl.constexpr, B_BLOCKS: tl.constexpr,
    B_SHARED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    CAPABILITY: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    NATIVE: tl.constexpr = CAPABILITY >= 89 and output_ptr.dtype.element_ty != tl.float32
    # How much of k the tensor cores may add up in fewer digits than float32's.
    IMPRECISE: tl.constexpr = BLOCK_K if NATIVE and A_FORMAT != "int8" else 0
    SUM: tl.constexpr = tl.int32 if A_FORMAT == "int8" else tl.float32
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), GROUP_M)
    row = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    a_scale_ptr += row * a_scale_row
    b_scale_ptr += col // B_SHARED * b_scale_row
    acc = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    for start in range(0, k, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K).to(tl.int64)
        a_mask = (row[:, None] < m) & (inner[None, :] < k)
        b_mask = (col[None, :] < n) & (inner[:, None] < k)
        a = tl.load(a_ptr + row[:, None] * a_row + inner[None, :] * a_col, a_mask, 0)  # (BLOCK_M, BLOCK_K)
        b = tl.load(b_ptr + col[None, :] * b_row + inner[:, None] * b_col, b_mask, 0)  # (BLOCK_K, BLOCK_N)
        a = _operand(a, A_FORMAT, NATIVE, UPCAST)
        b = _operand(b, B_FORMAT, NATIVE, UPCAST)
        if A_BLOCKS or B_BLOCKS:
            block_sum = tl.dot(a, b, max_num_imprecise_acc=IMPRECISE, out_dtype=SUM)
            block = tl.cast(start // BLOCK_K, tl.int64)
            if A_BLOCKS:
                block_sum *= tl.load(a_scale_ptr + block * a_scale_block, row < m, 0.0)[:, None]
            if B_BLOCKS:
                block_sum *= tl.load(b_scale_ptr + block * b_scale_block, col < n, 0.0)[None, :]
            acc += block_sum
        else:
            acc = tl.dot(a, b, acc, max_num_imprecise_acc=IMPRECISE, out_dtype=SUM)
    total = acc.to(tl.float32)
    if not A_BLOCKS:
        total *= tl.load(a_scale_ptr, row < m, 0.0)[:, None]
    if not B_BLOCKS:
        total *= tl.load(b_scale_ptr, col < n, 0.0)[None, :]
    inside = (row[:, None] < m) & (col[None, :] < n)
    if HAS_BIAS:
        total += tl.load(bias_ptr + col, col < n, 0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        at = row[:, None] * residual_row + col[None, :] * residual_col
        total += tl.load(residual_ptr + at, inside, 0.0).to(tl.float32)
    value = activate(total, ACTIVATION)
    at = row[:, None] * n + col[None, :]
    tl.store(output_ptr + at, value.to(output_ptr.dtype.element_ty), inside)


@functools.cache
def _capability(device: torch.device) -> int:
    """90 for sm_90; 0 where there is no GPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _strides(scale: Tensor, rows: int) -> tuple[int, int, bool, int]:
    """Strides along rows and blocks of k, whether there is a scale for each block, and how many rows share one."""
    if scale.numel() == 1:
        return 0, 0, False, 1
    by_block = scale.dim() == 2 and tuple(scale.shape) != (rows, 1)
    return scale.stride(0), scale.stride(1) if by_block else 0, by_block, 1 if scale.shape[0] == rows else SCALE_BLOCK


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
    output = torch.empty((m, n), dtype=out_dtype, device=input.device)
    if output.numel() == 0:
        return output
    a_row, a_block, a_blocks, _ = _strides(input_scale, m)
    b_row, b_block, b_blocks, shared = _strides(other_scale, n)
    addend = output if residual is None else residual
    a, b = input.view(torch.uint8), other.view(torch.uint8)
    block_m, block_n = (64, 64) if interpreted() else (32, 64) if m <= 32 else (128, 128)
    grid = (triton.cdiv(m, block_m) * triton.cdiv(n, block_n),)
    _scaled_kernel[grid](
        a, a.stride(0), a.stride(1), b, b.stride(0), b.stride(1), input_scale, a_row, a_block,
        other_scale, b_row, b_block, output if bias is None else bias.contiguous(), addend, addend.stride(0),
        addend.stride(1), output, m, n, k,
        A_FORMAT=_FORMATS[input.dtype], B_FORMAT=_FORMATS[other.dtype], A_BLOCKS=a_blocks, B_BLOCKS=b_blocks,
        B_SHARED=shared, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACTIVATION=activation,
        CAPABILITY=_capability(input.device), UPCAST=interpreted(), BLOCK_M=block_m, BLOCK_N=block_n,
        BLOCK_K=SCALE_BLOCK, GROUP_M=8, num_warps=8, num_stages=3,
    )  # fmt: skip
    return output
