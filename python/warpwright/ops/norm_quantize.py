"""Norms whose result leaves in 8 bits, for a product that takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import acc_dtype, check_like, fail, require, shape_text
from warpwright.ops.norm import check_affine

_INPUT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
QUANTIZED_TYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
#: Of elements that share a scale.
BLOCK_SIZES = (32, 64, 128)


def rms_norm_quantize(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    block_size: int | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, ...]:
    """quantize(rms_norm(input + residual)) in one pass, without rounding the norm's result in between.

    Args:
        input: (..., n), float32, float16 or bfloat16, any strides.
        normalized_shape: (n,), the last dimension of input.
        weight, eps, residual, weight_offset: as in rms_norm.
        block_size: elements of a row that share a scale: 32, 64 or 128; the last block may be shorter. None: one scale
            for each row.
        dtype: torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8.

    Returns:
        (quantized, scale), and with a residual also the sum `input + residual` in input's dtype.
        quantized: like input, contiguous, in `dtype`, rounded to the nearest number, to the even one between two.
        scale: (..., ceil(n / block_size)), or (..., 1) without blocks, float32, with norm ~ quantized * scale: the
            largest magnitude of the block divided by the largest number of `dtype` (448, 57344 or 127), as quantize_fp8
            has it. A NaN makes its block's scale NaN, and the elements NaN or, as int8, 0.

    Raises:
        RuntimeError: naming the argument whose dtype, device, shape or value does not fit.

    Accumulates in float32. Not differentiable: for inference, or behind a gradient of the caller's own.
    """
    _check_shape("rms_norm_quantize", input, normalized_shape)
    if eps is None:
        eps = torch.finfo(acc_dtype(input.dtype)).eps
    outputs = call("norm_quantize", input, residual, weight, None, eps, weight_offset, False, block_size, dtype)
    return outputs if residual is not None else outputs[:2]


def layer_norm_quantize(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    weight_offset: float = 0.0,
    block_size: int | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, ...]:
    """quantize(layer_norm(input + residual)) in one pass, without rounding the norm's result in between.

    Args:
        input, normalized_shape, block_size, dtype: as in rms_norm_quantize.
        weight, bias, eps, residual, weight_offset: as in layer_norm.

    Returns:
        (quantized, scale), and with a residual also the sum, as rms_norm_quantize.

    Raises:
        RuntimeError: naming the argument whose dtype, device, shape or value does not fit.

    Accumulates in float32. Not differentiable: for inference, or behind a gradient of the caller's own.
    """
    _check_shape("layer_norm_quantize", input, normalized_shape)
    outputs = call("norm_quantize", input, residual, weight, bias, eps, weight_offset, True, block_size, dtype)
    return outputs if residual is not None else outputs[:2]


def _check_shape(op: str, input: Tensor, normalized_shape: Sequence[int]) -> None:
    if input.dim() < 1 or tuple(normalized_shape) != tuple(input.shape[-1:]):
        message = f"normalized_shape {shape_text(normalized_shape)} must be the last dimension of input, "
        fail(op, message + f"got input {shape_text(input.shape)}")


# ---- argument checks, in the words of csrc/bindings/norm_quantize.cpp ----


def _check(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    weight_offset: float,
    centred: bool,
    block_size: int | None,
    dtype: torch.dtype,
) -> None:
    op = "layer_norm_quantize" if centred else "rms_norm_quantize"
    require(input.dtype in _INPUT_TYPES, op, f"input must be float32, float16 or bfloat16, got {input.dtype}")
    message = f"normalized_shape must have between 1 and input.dim() = {input.dim()} dimensions, got 1"
    require(input.dim() >= 1, op, message)
    if residual is not None:
        check_like(op, "residual", residual, "input", input)
    check_affine(op, "weight", weight, input, 1)
    check_affine(op, "bias", bias, input, 1)
    require(weight_offset == 0 or weight is not None, op, "weight must be given with weight_offset")
    message = f"block_size must be None, 32, 64 or 128, got {block_size}"
    require(block_size is None or block_size in BLOCK_SIZES, op, message)
    message = f"dtype must be torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8, got {dtype}"
    require(dtype in QUANTIZED_TYPES, op, message)


def _fake(
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
    groups = 1 if block_size is None else -(-input.shape[-1] // block_size)
    return (
        input.new_empty(input.shape, dtype=dtype),
        input.new_empty((*input.shape[:-1], groups), dtype=torch.float32),
        input.new_empty(input.shape if residual is not None else (0,)),
    )


_registry.define("norm_quantize", family="norm_quantize", check=_check, fake=_fake)
