"""8-bit floating-point quantization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import check_float, check_same_device, require, shape_text

FLOAT8_TYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
_INPUT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def quantize_fp8(
    input: Tensor, block_size: int | None = None, *, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    """Quantizes each row, or each block of a row, to 8-bit floats with a scale of its own: input ~ quantized * scale.

    Args:
        input: (..., n), float32, float16 or bfloat16, any strides.
        block_size: elements of a row that share a scale, 128 for the block scaling of DeepSeek-V3; the last block may
            be shorter. None: one scale for each row.
        dtype: torch.float8_e4m3fn (3 bits of mantissa, up to 448) or torch.float8_e5m2 (2 bits, up to 57344).

    Returns:
        quantized: like input, contiguous, in `dtype`, rounded to the nearest number, to the even one between two.
        scale: (..., ceil(n / block_size)), or (..., 1) without blocks, float32: the largest magnitude of the block
            divided by the largest number of `dtype`; 1 for a block of zeros, never below the smallest normal float32.
            A NaN makes its block's scale and elements NaN; an infinity its scale infinite, itself NaN and the rest 0.

    Raises:
        RuntimeError: input, dtype or block_size is something else.

    The same bits on every backend. Not differentiable.

    Source: OCP 8-bit Floating Point Specification (OFP8), revision 1.0, sections 3 and 5.
    """
    quantized, scale = call("quantize_fp8", input, block_size, dtype)
    return quantized, scale


def dequantize_fp8(
    input: Tensor, scale: Tensor, block_size: int | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The inverse of quantize_fp8: input * scale, with the scale of each row or block.

    Args:
        input: (..., n), torch.float8_e4m3fn or torch.float8_e5m2, any strides.
        scale: (..., ceil(n / block_size)), or (..., 1) without blocks, float32, any strides.
        block_size: as it was quantized.
        dtype: of the result: float32, float16, bfloat16 (float64 on the CPU).

    Returns:
        Like input, contiguous, in `dtype`: the float32 product, rounded once.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit.

    The same bits on every backend. Not differentiable.
    """
    return call("dequantize_fp8", input, scale, block_size, dtype)


# ---- argument checks, in the words of csrc/bindings/quantize.cpp ----


def _scale_shape(op: str, input: Tensor, block_size: int | None) -> tuple[int, ...]:
    require(input.dim() >= 1, op, "input must have at least 1 dimension, got 0")
    if block_size is None:
        return (*input.shape[:-1], 1)
    require(block_size >= 1, op, f"block_size must be None or positive, got {block_size}")
    return (*input.shape[:-1], -(-input.shape[-1] // block_size))


def _check_quantize(input: Tensor, block_size: int | None, dtype: torch.dtype) -> None:
    op = "quantize_fp8"
    require(input.dtype in _INPUT_TYPES, op, f"input must be float32, float16 or bfloat16, got {input.dtype}")
    message = f"dtype must be torch.float8_e4m3fn or torch.float8_e5m2, got {dtype}"
    require(dtype in FLOAT8_TYPES, op, message)
    _scale_shape(op, input, block_size)


def _check_dequantize(input: Tensor, scale: Tensor, block_size: int | None, dtype: torch.dtype) -> None:
    op = "dequantize_fp8"
    message = f"input must be torch.float8_e4m3fn or torch.float8_e5m2, got {input.dtype}"
    require(input.dtype in FLOAT8_TYPES, op, message)
    check_float(op, "dtype", torch.empty(0, dtype=dtype, device=input.device))
    expected = _scale_shape(op, input, block_size)
    check_same_device(op, "scale", scale, "input", input)
    require(scale.dtype == torch.float32, op, f"scale must be torch.float32, got {scale.dtype}")
    message = f"scale must have shape {shape_text(expected)}, got {shape_text(scale.shape)}"
    require(tuple(scale.shape) == expected, op, message)


def _fake_quantize(input: Tensor, block_size: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scale_shape: Any = _scale_shape("quantize_fp8", input, block_size)
    return input.new_empty(input.shape, dtype=dtype), input.new_empty(scale_shape, dtype=torch.float32)


_registry.define("quantize_fp8", family="quantize", check=_check_quantize, fake=_fake_quantize)
_registry.define(
    "dequantize_fp8",
    family="quantize",
    check=_check_dequantize,
    fake=lambda input, scale, block_size, dtype: input.new_empty(input.shape, dtype=dtype),
)
