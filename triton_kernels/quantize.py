"""8-bit quantization: one program for each row, or block of a row.

Conversions are integer arithmetic: the same bits on every chip, and in the interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.ops.quantize import scale_shape
from warpwright.triton_kernels._common import num_warps, round_even, row_block, rows, tl_acc
from warpwright.triton_kernels._philox import random_words

#: dtype -> bits of mantissa, exponent bias, largest number, first bit pattern that is infinity, first that is NaN.
_FORMATS = {
    torch.float8_e4m3fn: (3, 7, 448.0, 0x7F, 0x7F),
    torch.float8_e5m2: (2, 15, 57344.0, 0x7C, 0x7D),
}


@triton.jit
def _encode(x, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr):
    dropped: tl.constexpr = 23 - MANTISSA
    bits = x.to(tl.int32, bitcast=True)
    clamped = tl.minimum((bits & 0x7FFFFFFF).to(tl.float32, bitcast=True), MAX)
    magnitude = clamped.to(tl.int32, bitcast=True)
    odd = (magnitude >> dropped) & 1
    normal = ((magnitude + ((1 << (dropped - 1)) - 1) + odd) >> dropped) - ((127 - BIAS) << MANTISSA)
    # One unit in the last place of this number is the distance between subnormals: the addition rounds to them.
    shift_bits: tl.constexpr = (1 - BIAS + dropped + 127) << 23
    shift = tl.full(x.shape, shift_bits, tl.int32).to(tl.float32, bitcast=True)
    subnormal = (clamped + shift).to(tl.int32, bitcast=True) - shift_bits
    code = tl.where(magnitude < ((1 - BIAS + 127) << 23), subnormal, normal) | ((bits >> 24) & 0x80)
    return tl.where(x != x, 0x7F, code).to(tl.uint8)


@triton.jit
def _decode(
    byte, MANTISSA: tl.constexpr, BIAS: tl.constexpr, FIRST_INFINITY: tl.constexpr, FIRST_NAN: tl.constexpr
):  # fmt: skip
    dropped: tl.constexpr = 23 - MANTISSA
    magnitude = byte.to(tl.int32) & 0x7F
    normal = ((magnitude << dropped) + ((127 - BIAS) << 23)).to(tl.float32, bitcast=True)
    step_bits: tl.constexpr = (1 - BIAS - MANTISSA + 127) << 23
    step = tl.full(byte.shape, step_bits, tl.int32).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < (1 << MANTISSA), magnitude.to(tl.float32) * step, normal)
    value = tl.where(magnitude >= FIRST_INFINITY, float("inf"), value)
    value = tl.where(magnitude >= FIRST_NAN, float("nan"), value)
    # The sign as a bit: Triton's negation is 0 - x, which turns 0 into 0.
    sign = (byte.to(tl.int32) & 0x80) << 24
    return (value.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _quantize_kernel(
    x_ptr, x_row, x_col, out_ptr, scale_ptr, cols, block, groups,
    MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    row, first = index // groups, index % groups * block
    count = tl.minimum(cols - first, block)
    x_ptr += row * x_row + first * x_col
    out_ptr += row * cols + first
    # As bit patterns magnitudes are ordered like integers, with NaN above infinity: it is not lost in a maximum.
    largest = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(x_ptr + i * x_col, i < count, 0.0).to(tl.float32)
        largest = tl.maximum(largest, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    amax_bits = tl.max(largest, 0)
    amax = amax_bits.to(tl.float32, bitcast=True)
    scale = tl.div_rn(amax, tl.full((), MAX, tl.float32))
    scale = tl.where(amax_bits > 0x7F800000, float("nan"), tl.where(scale < 2.0**-126, 2.0**-126, scale))
    scale = tl.where(amax_bits == 0, 1.0, scale)
    tl.store(scale_ptr + index, scale)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(x_ptr + i * x_col, i < count, 0.0).to(tl.float32)
        quotient = tl.div_rn(x, tl.zeros_like(x) + scale)
        tl.store(out_ptr + i, _encode(quotient, MANTISSA, BIAS, MAX), i < count)


@triton.jit
def _dequantize_kernel(
    x_ptr, x_row, x_col, scale_ptr, scale_row, scale_col, out_ptr, cols, block, groups,
    MANTISSA: tl.constexpr, BIAS: tl.constexpr, FIRST_INFINITY: tl.constexpr, FIRST_NAN: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    row, group = index // groups, index % groups
    first = group * block
    count = tl.minimum(cols - first, block)
    scale = tl.load(scale_ptr + row * scale_row + group * scale_col).to(ACC)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        byte = tl.load(x_ptr + row * x_row + (first + i) * x_col, i < count, 0)
        value = _decode(byte, MANTISSA, BIAS, FIRST_INFINITY, FIRST_NAN).to(ACC) * scale
        tl.store(out_ptr + row * cols + first + i, value.to(out_ptr.dtype.element_ty), i < count)


def _groups(cols: int, block_size: int | None) -> tuple[int, int]:
    """Elements in a group, and groups in a row."""
    if block_size is None:
        return max(cols, 1), 1
    block = min(block_size, max(cols, 1))
    return block, triton.cdiv(cols, block)


def quantize_fp8(input: Tensor, block_size: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cols = input.shape[-1]
    block, groups = _groups(cols, block_size)
    quantized = torch.empty(input.shape, dtype=dtype, device=input.device)
    scale = torch.empty((*input.shape[:-1], groups), dtype=torch.float32, device=input.device)
    if scale.numel() == 0:
        return quantized, scale
    x = rows(input, 1)
    mantissa, bias, largest, _, _ = _FORMATS[dtype]
    step = row_block(block)
    _quantize_kernel[(scale.numel(),)](
        x, x.stride(0), x.stride(1), quantized.view(torch.uint8), scale, cols, block, groups,
        MANTISSA=mantissa, BIAS=bias, MAX=largest, BLOCK=step, num_warps=num_warps(step),
    )  # fmt: skip
    return quantized, scale


def dequantize_fp8(input: Tensor, scale: Tensor, block_size: int | None, dtype: torch.dtype) -> Tensor:
    output = torch.empty(input.shape, dtype=dtype, device=input.device)
    if output.numel() == 0:
        return output
    cols = input.shape[-1]
    block, groups = _groups(cols, block_size)
    x, s = rows(input.view(torch.uint8), 1), rows(scale, 1)
    mantissa, bias, _, first_infinity, first_nan = _FORMATS[input.dtype]
    step = row_block(block)
    _dequantize_kernel[(scale.numel(),)](
        x, x.stride(0), x.stride(1), s, s.stride(0), s.stride(1), output, cols, block, groups,
        MANTISSA=mantissa, BIAS=bias, FIRST_INFINITY=first_infinity, FIRST_NAN=first_nan, ACC=tl_acc(dtype),
        BLOCK=step, num_warps=num_warps(step),
    )  # fmt: skip
    return output


# ---- any granularity ----


@triton.jit
def _maxima_kernel(x_ptr, x_row, x_col, out_ptr, cols, block, groups, BLOCK: tl.constexpr):
    # The largest magnitude of each block of a row, as bits: NaN lies above infinity.
    index = tl.program_id(0).to(tl.int64)
    row, first = index // groups, index % groups * block
    count = tl.minimum(cols - first, block)
    largest = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(x_ptr + row * x_row + (first + i) * x_col, i < count, 0.0).to(tl.float32)
        largest = tl.maximum(largest, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    tl.store(out_ptr + index, tl.max(largest, 0))


@triton.jit
def _scales_kernel(bits_ptr, scale_ptr, count, MAX: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(bits_ptr + i, i < count, 0)
    scale = tl.div_rn(bits.to(tl.float32, bitcast=True), tl.full((BLOCK,), MAX, tl.float32))
    scale = tl.where(bits > 0x7F800000, float("nan"), tl.where(scale < 2.0**-126, 2.0**-126, scale))
    tl.store(scale_ptr + i, tl.where(bits == 0, 1.0, scale), i < count)


@triton.jit
def _uniform(words):
    """Numbers from [0, 1) of 24 bits."""
    return (words >> 8).to(tl.float32) * 2.0**-24


@triton.jit
def _encode_at_random(x, words, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr):
    dropped: tl.constexpr = 23 - MANTISSA
    bits = x.to(tl.int32, bitcast=True)
    clamped = tl.minimum((bits & 0x7FFFFFFF).to(tl.float32, bitcast=True), MAX)
    magnitude = clamped.to(tl.int32, bitcast=True)
    normal = ((magnitude + (words >> (32 - dropped)).to(tl.int32)) >> dropped) - ((127 - BIAS) << MANTISSA)
    small = magnitude < ((1 - BIAS + 127) << 23)
    steps = tl.where(small, clamped, 0.0) * 2.0 ** (BIAS - 1 + MANTISSA)
    subnormal = tl.floor(steps + _uniform(words)).to(tl.int32)
    code = tl.where(small, subnormal, normal) | ((bits >> 24) & 0x80)
    return tl.where(x != x, 0x7F, code).to(tl.uint8)


@triton.jit
def _encode_matrix_kernel(
    x_ptr, x_row, x_col, scale_ptr, out_ptr, cols, blocks, block_rows, block_cols, per_row, seed, offset,
    MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr, STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # MANTISSA is 0 for int8.
    index = tl.program_id(0).to(tl.int64)
    row, start = index // blocks, index % blocks * BLOCK
    col = start + tl.arange(0, BLOCK).to(tl.int64)
    mask = col < cols
    x = tl.load(x_ptr + row * x_row + col * x_col, mask, 0.0).to(tl.float32)
    x = tl.div_rn(x, tl.load(scale_ptr + row // block_rows * per_row + col // block_cols, mask, 1.0))
    if STOCHASTIC:
        words = random_words(seed.to(tl.int64), row, start, offset, BLOCK)
    if MANTISSA == 0:
        clamped = tl.where(x != x, 0.0, tl.minimum(tl.maximum(x, -MAX), MAX))
        clamped = tl.floor(clamped + _uniform(words)) if STOCHASTIC else round_even(clamped)
        code = (tl.minimum(clamped, MAX).to(tl.int32) & 0xFF).to(tl.uint8)
    elif STOCHASTIC:
        code = _encode_at_random(x, words, MANTISSA, BIAS, MAX)
    else:
        code = _encode(x, MANTISSA, BIAS, MAX)
    tl.store(out_ptr + row * cols + col, code, mask)


@triton.jit
def _decode_matrix_kernel(
    x_ptr, x_row, x_col, scale_ptr, out_ptr, cols, blocks, block_rows, block_cols, per_row, MANTISSA: tl.constexpr,
    BIAS: tl.constexpr, FIRST_INFINITY: tl.constexpr, FIRST_NAN: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    row = index // blocks
    col = index % blocks * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    mask = col < cols
    byte = tl.load(x_ptr + row * x_row + col * x_col, mask, 0)
    if MANTISSA == 0:
        value = byte.to(tl.int8, bitcast=True).to(ACC)
    else:
        value = _decode(byte, MANTISSA, BIAS, FIRST_INFINITY, FIRST_NAN).to(ACC)
    scale = tl.load(scale_ptr + row // block_rows * per_row + col // block_cols, mask, 1.0).to(ACC)
    tl.store(out_ptr + row * cols + col, (value * scale).to(out_ptr.dtype.element_ty), mask)


_ALL_FORMATS = _FORMATS | {torch.int8: (0, 0, 127.0, 0, 0)}


def _grid(x: Tensor, granularity: str, block_size: int) -> tuple[int, int, int]:
    """Rows and columns that share a scale, and scales in a row of them."""
    n_rows, cols = max(x.shape[0], 1), max(x.shape[1], 1)
    blocks = triton.cdiv(x.shape[1], block_size)
    return {
        "tensor": (n_rows, cols, 1),
        "row": (1, cols, 1),
        "block": (1, block_size, blocks),
        "square": (block_size, block_size, blocks),
    }[granularity]


def _quantize_matrix(
    x: Tensor, quantized: Tensor, scale: Tensor, granularity: str, block_size: int, seed: int | None, offset: int
) -> None:
    mantissa, bias, largest, _, _ = _ALL_FORMATS[quantized.dtype]
    block_rows, block_cols, per_row = _grid(x, granularity, block_size)
    if x.numel() == 0:
        scale.fill_(1.0)  # That of zeros.
        return
    bits = torch.zeros((x.shape[0], per_row), dtype=torch.int32, device=x.device)
    step = row_block(block_cols)
    _maxima_kernel[(bits.numel(),)](
        x, x.stride(0), x.stride(1), bits, x.shape[1], block_cols, per_row, BLOCK=step, num_warps=num_warps(step)
    )
    if block_rows > 1:  # Of few numbers: torch's own maximum of what the kernel left.
        padded = torch.nn.functional.pad(bits, (0, 0, 0, -bits.shape[0] % block_rows))
        bits = padded.view(-1, block_rows, per_row).amax(1)
    _scales_kernel[(triton.cdiv(bits.numel(), 256),)](bits, scale, bits.numel(), MAX=largest, BLOCK=256)
    step = max(row_block(x.shape[1], 2048), 4)
    blocks = triton.cdiv(x.shape[1], step)
    _encode_matrix_kernel[(x.shape[0] * blocks,)](
        x, x.stride(0), x.stride(1), scale, quantized.view(torch.uint8), x.shape[1], blocks, block_rows, block_cols,
        per_row, seed or 0, offset, MANTISSA=mantissa, BIAS=bias, MAX=largest, STOCHASTIC=seed is not None, BLOCK=step,
        num_warps=num_warps(step),
    )  # fmt: skip


def quantize(
    input: Tensor, dtype: torch.dtype, granularity: str, block_size: int, seed: int | None, transposed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
        shape = scale_shape(x.shape, granularity, block_size)
        return torch.empty(x.shape, dtype=dtype, device=x.device), torch.empty(shape, device=x.device)

    quantized, scale = outputs(input)
    _quantize_matrix(rows(input, 1), quantized, scale, granularity, block_size, seed, 0)
    if not transposed:
        return quantized, scale, input.new_empty(0, dtype=dtype), input.new_empty(0, dtype=torch.float32)
    turned, turned_scale = outputs(input.t())
    _quantize_matrix(input.t(), turned, turned_scale, granularity, block_size, seed, 1)
    return quantized, scale, turned, turned_scale


def dequantize(input: Tensor, scale: Tensor, granularity: str, block_size: int, dtype: torch.dtype) -> Tensor:
    output = torch.empty(input.shape, dtype=dtype, device=input.device)
    if output.numel() == 0:
        return output
    mantissa, bias, _, first_infinity, first_nan = _ALL_FORMATS[input.dtype]
    x = rows(input.view(torch.uint8), 1)
    step = row_block(x.shape[1], 2048)
    blocks = triton.cdiv(x.shape[1], step)
    _decode_matrix_kernel[(x.shape[0] * blocks,)](
        x, x.stride(0), x.stride(1), scale.contiguous(), output, x.shape[1], blocks,
        *_grid(x, granularity, block_size), MANTISSA=mantissa, BIAS=bias, FIRST_INFINITY=first_infinity,
        FIRST_NAN=first_nan, ACC=tl_acc(dtype), BLOCK=step, num_warps=num_warps(step),
    )  # fmt: skip
    return output
