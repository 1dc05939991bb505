"""Quantization to 8-bit floats and int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import check_float, check_same_device, require, shape_text

FLOAT8_TYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
_INPUT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
QUANTIZED_TYPES = (*FLOAT8_TYPES, torch.int8)
GRANULARITIES = ("tensor", "row", "block", "square")


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


# ---- any granularity ----


def quantize(
    input: Tensor,
    dtype: torch.dtype = torch.float8_e4m3fn,
    *,
    granularity: str = "row",
    block_size: int = 128,
    seed: int | None = None,
    transposed: bool = False,
) -> tuple[Tensor, ...]:
    """Quantizes to 8-bit floats or int8, input ~ quantized * scale, and at once the transpose for a backward pass.

    Args:
        input: (..., n), float32, float16 or bfloat16, any strides; (m, n) for squares and a transposed output.
        dtype: torch.float8_e4m3fn (up to 448), torch.float8_e5m2 (up to 57344) or torch.int8 (-127 to 127).
        granularity: what shares a scale: "tensor", all of it; "row", a row of the last dimension; "block", `block_size`
            elements of a row, as DeepSeek-V3's activations; "square", `block_size` x `block_size`, as its weights. The
            last block or square may be smaller.
        block_size: 32, 64 or 128.
        seed: None rounds to the nearest number, to the even one between two. With a seed a number between two goes up
            with the probability of its distance from the lower one, so that the expected result is the input; what
            lies outside of the range becomes the largest. The same seed gives the same bits, and each call of a
            training step should have its own.
        transposed: also quantize the transpose: its rows are input's columns, and its scales and roundings its own.

    Returns:
        quantized: like input, contiguous, in `dtype`.
        scale: float32, () for "tensor", (..., 1) for "row", (..., ceil(n / block_size)) for "block" and
            (ceil(m / block_size), ceil(n / block_size)) for "square": the largest magnitude divided by the largest
            number of `dtype`; 1 for zeros, never below the smallest normal float32. A NaN makes its scale NaN, and the
            elements that share it NaN, or 0 in int8; an infinity its scale infinite.
        With `transposed` two tensors more: quantized and scale of `input.T`.

    Raises:
        RuntimeError: input, dtype, granularity or block_size is something else.

    The same bits on every backend, with and without a seed. On a GPU blocks and squares read the input once, whatever
    is asked for, rows and tensors twice. Not differentiable.

    Source: OCP 8-bit Floating Point Specification (OFP8), revision 1.0; DeepSeek-AI, "DeepSeek-V3 Technical Report",
    2024, section 3.3; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011 (Philox).
    """
    result = call("quantize", input, dtype, granularity, block_size, seed, transposed)
    return tuple(result) if transposed else tuple(result[:2])


def dequantize(
    input: Tensor,
    scale: Tensor,
    *,
    granularity: str = "row",
    block_size: int = 128,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The inverse of quantize: input * scale.

    Args:
        input: (..., n), torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8, any strides.
        scale: float32, of the shape that quantize returns, any strides.
        granularity, block_size: as it was quantized.
        dtype: of the result: float32, float16, bfloat16 (float64 on the CPU).

    Returns:
        Like input, contiguous, in `dtype`: the float32 product, rounded once.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit.

    The same bits on every backend. Not differentiable.
    """
    return call("dequantize", input, scale, granularity, block_size, dtype)


# ---- argument checks, in the words of csrc/bindings/quantize_matrix.cpp ----


def scale_shape(shape: tuple[int, ...], granularity: str, block_size: int) -> tuple[int, ...]:
    """Of the scales of a tensor of `shape`."""
    if granularity == "tensor":
        return ()
    if granularity == "row":
        return (*shape[:-1], 1)
    blocks = -(-shape[-1] // block_size)
    return (*shape[:-1], blocks) if granularity == "block" else (-(-shape[0] // block_size), blocks)


def _check_matrix(op: str, input: Tensor, granularity: str, block_size: int, transposed: bool) -> None:
    require(input.dim() >= 1, op, "input must have at least 1 dimension, got 0")
    message = f"granularity must be one of {', '.join(GRANULARITIES)}, got '{granularity}'"
    require(granularity in GRANULARITIES, op, message)
    require(block_size in (32, 64, 128), op, f"block_size must be 32, 64 or 128, got {block_size}")
    flat = granularity != "square" and not transposed
    message = f"input must have 2 dimensions for squares or a transposed output, got {input.dim()}"
    require(flat or input.dim() == 2, op, message)


_QUANTIZED_NAMES = "torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8"


def _check_quantize_matrix(
    input: Tensor, dtype: torch.dtype, granularity: str, block_size: int, seed: int | None, transposed: bool
) -> None:
    op = "quantize"
    require(input.dtype in _INPUT_TYPES, op, f"input must be float32, float16 or bfloat16, got {input.dtype}")
    require(dtype in QUANTIZED_TYPES, op, f"dtype must be {_QUANTIZED_NAMES}, got {dtype}")
    _check_matrix(op, input, granularity, block_size, transposed)


def _check_dequantize_matrix(
    input: Tensor, scale: Tensor, granularity: str, block_size: int, dtype: torch.dtype
) -> None:
    op = "dequantize"
    require(input.dtype in QUANTIZED_TYPES, op, f"input must be {_QUANTIZED_NAMES}, got {input.dtype}")
    check_float(op, "dtype", torch.empty(0, dtype=dtype, device=input.device))
    _check_matrix(op, input, granularity, block_size, False)
    check_same_device(op, "scale", scale, "input", input)
    require(scale.dtype == torch.float32, op, f"scale must be torch.float32, got {scale.dtype}")
    expected = scale_shape(tuple(input.shape), granularity, block_size)
    message = f"scale must have shape {shape_text(expected)}, got {shape_text(scale.shape)}"
    require(tuple(scale.shape) == expected, op, message)


def _fake_quantize_matrix(
    input: Tensor, dtype: torch.dtype, granularity: str, block_size: int, seed: int | None, transposed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def outputs(*shape: int) -> tuple[Tensor, Tensor]:
        scale = scale_shape(shape, granularity, block_size)
        return input.new_empty(shape, dtype=dtype), input.new_empty(scale, dtype=torch.float32)

    nothing = input.new_empty((0,), dtype=dtype), input.new_empty((0,), dtype=torch.float32)
    return *outputs(*input.shape), *(outputs(*reversed(input.shape)) if transposed else nothing)


_registry.define("quantize", family="quantize", check=_check_quantize_matrix, fake=_fake_quantize_matrix)
_registry.define(
    "dequantize",
    family="quantize",
    check=_check_dequantize_matrix,
    fake=lambda input, scale, granularity, block_size, dtype: input.new_empty(input.shape, dtype=dtype),
)
