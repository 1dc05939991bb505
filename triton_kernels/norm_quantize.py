"""Norms with an 8-bit result: one program a row, which computes the norm again in each pass rather than keep it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import interpreted, num_warps, row_block, rows
from warpwright.triton_kernels.norm import _load_sum
from warpwright.triton_kernels.quantize import _FORMATS, _encode

INT8_MAX = 127.0


@triton.jit
def _encode_int8(x, MAX: tl.constexpr):
    # Adding 1.5 * 2^23 rounds to the nearest integer, to the even one between two.
    clamped = tl.minimum(tl.maximum(x, -MAX), MAX)
    code = (clamped + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    return tl.where(x != x, 0, code & 0xFF).to(tl.uint8)


@triton.jit
def _scale_of(magnitude_bits, MAX: tl.constexpr):
    magnitude = magnitude_bits.to(tl.float32, bitcast=True)
    scale = tl.div_rn(magnitude, tl.full(magnitude.shape, MAX, tl.float32))
    scale = tl.where(magnitude_bits > 0x7F800000, float("nan"), tl.where(scale < 2.0**-126, 2.0**-126, scale))
    return tl.where(magnitude_bits == 0, 1.0, scale)


@triton.jit
def _norm_quantize_kernel(
    x_ptr, x_row, x_col, residual_ptr, residual_row, residual_col, weight_ptr, bias_ptr, sum_ptr, out_ptr, scale_ptr,
    cols, groups, eps, weight_offset,
    CENTRED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    INT8: tl.constexpr, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr, INTERPRETED: tl.constexpr,
    GROUPED: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Tiles are COUNT blocks of BLOCK columns; not GROUPED, one scale serves all of them."""
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = sum_ptr.dtype.element_ty
    x_ptr += row * x_row
    residual_ptr += row * residual_row
    within = (tl.arange(0, COUNT)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]).to(tl.int64)
    mean = 0.0
    if CENTRED:
        total = tl.zeros((COUNT, BLOCK), tl.float32)
        for start in range(0, cols, COUNT * BLOCK):
            col = start + within
            total += _load_sum(
                x_ptr, residual_ptr, col * x_col, col * residual_col, col < cols, 1.0, dtype,
                HAS_RESIDUAL, False, tl.float32, INTERPRETED,
            )  # fmt: skip
        mean = tl.sum(tl.sum(total, 1), 0) / cols
    squares = tl.zeros((COUNT, BLOCK), tl.float32)
    for start in range(0, cols, COUNT * BLOCK):
        col = start + within
        mask = col < cols
        h = _load_sum(
            x_ptr, residual_ptr, col * x_col, col * residual_col, mask, 1.0, dtype,
            HAS_RESIDUAL, False, tl.float32, INTERPRETED,
        )  # fmt: skip
        if HAS_RESIDUAL:
            tl.store(sum_ptr + row * cols + col, h.to(dtype), mask)
        difference = tl.where(mask, h - mean, 0.0)
        squares += difference * difference
    rstd = 1.0 / tl.sqrt(tl.sum(tl.sum(squares, 1), 0) / cols + eps)

    # Not GROUPED, the first round finds the row's scale and the second one writes.
    largest = tl.zeros((COUNT, BLOCK), tl.int32)
    row_scale = rstd * 0.0
    for round in tl.static_range(1 if GROUPED else 2):
        writes = GROUPED or round == 1
        for start in range(0, cols, COUNT * BLOCK):
            col = start + within
            mask = col < cols
            h = _load_sum(
                x_ptr, residual_ptr, col * x_col, col * residual_col, mask, 1.0, dtype,
                HAS_RESIDUAL, False, tl.float32, INTERPRETED,
            )  # fmt: skip
            y = (h - mean) * rstd
            if HAS_WEIGHT:
                y *= tl.load(weight_ptr + col, mask, 0.0).to(tl.float32) + weight_offset
            if HAS_BIAS:
                y += tl.load(bias_ptr + col, mask, 0.0).to(tl.float32)
            # As bit patterns magnitudes are ordered like integers, with NaN above infinity.
            bits = tl.where(mask, y, 0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
            if GROUPED:
                scale = _scale_of(tl.max(bits, 1), MAX)
                group = start // BLOCK + tl.arange(0, COUNT)
                tl.store(scale_ptr + row * groups + group, scale, group < groups)
            if writes:
                divisor = scale[:, None] if GROUPED else row_scale
                quotient = tl.div_rn(y, tl.zeros_like(y) + divisor)
                code = _encode_int8(quotient, MAX) if INT8 else _encode(quotient, MANTISSA, BIAS, MAX)
                tl.store(out_ptr + row * cols + col, code, mask)
            else:
                largest = tl.maximum(largest, bits)
        if not writes:
            row_scale = _scale_of(tl.max(tl.max(largest, 1), 0), MAX)
            tl.store(scale_ptr + row, row_scale)


def norm_quantize(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    weight_offset: float,
    centred: bool,
    block_size: int | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    cols = input.shape[-1]
    groups = 1 if block_size is None else triton.cdiv(cols, block_size)
    quantized = torch.empty(input.shape, dtype=dtype, device=input.device)
    scale = torch.empty((*input.shape[:-1], groups), dtype=torch.float32, device=input.device)
    total = torch.empty(input.shape if residual is not None else (0,), dtype=input.dtype, device=input.device)
    if scale.numel() == 0:
        return quantized, scale, total
    x = rows(input, 1)
    r = x if residual is None else rows(residual, 1)
    mantissa, bias_of_exponent, largest = (0, 0, INT8_MAX) if dtype == torch.int8 else _FORMATS[dtype][:3]
    step = row_block(cols, 4096)
    block = step if block_size is None else block_size
    _norm_quantize_kernel[(x.shape[0],)](
        x, x.stride(0), x.stride(1), r, r.stride(0), r.stride(1), x if weight is None else weight.contiguous(),
        x if bias is None else bias.contiguous(), total, quantized.view(torch.uint8), scale,
        cols, groups, eps, weight_offset,
        CENTRED=centred, HAS_RESIDUAL=residual is not None, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        INT8=dtype == torch.int8, MANTISSA=mantissa, BIAS=bias_of_exponent, MAX=largest, INTERPRETED=interpreted(),
        GROUPED=block_size is not None, COUNT=max(step // block, 1), BLOCK=block, num_warps=num_warps(step),
    )  # fmt: skip
    return quantized, scale, total
