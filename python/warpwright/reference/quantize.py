"""Definitions of the quantize family."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright._check import count_of
from warpwright.reference._philox import random_words

#: A scale is never below the smallest normal float32, where it would have lost digits or be zero.
MIN_SCALE = torch.finfo(torch.float32).tiny
#: What every NaN becomes: the sign of a computed NaN differs from processor to processor.
NAN_BITS = 0x7F


def _blocks(x: Tensor, block_size: int | None) -> Tensor:
    """(..., n) as (..., blocks, block), the last block filled up with zeros."""
    cols = x.shape[-1]
    if block_size is None:
        return x.unsqueeze(-2)
    block = min(block_size, max(cols, 1))
    count = -(-cols // block)
    return F.pad(x, (0, count * block - cols)).unflatten(-1, (count, block))


def _scale_of(amax: Tensor, dtype: torch.dtype) -> Tensor:
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    return torch.where(amax == 0, 1.0, (amax / largest).clamp(min=MIN_SCALE))


def quantize_fp8(input: Tensor, block_size: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    largest = torch.finfo(dtype).max
    x = _blocks(input.float(), block_size)
    amax = x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    scale = _scale_of(amax, dtype)
    quotient = (x / scale.unsqueeze(-1)).flatten(-2)[..., : input.shape[-1]]
    bits = quotient.clamp(-largest, largest).to(dtype).view(torch.uint8)
    return torch.where(quotient.isnan(), NAN_BITS, bits).view(dtype).contiguous(), scale.contiguous()


def dequantize_fp8(input: Tensor, scale: Tensor, block_size: int | None, dtype: torch.dtype) -> Tensor:
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    x = _blocks(input.to(acc), block_size) * scale.to(acc).unsqueeze(-1)
    return x.flatten(-2)[..., : input.shape[-1]].to(dtype).contiguous()


# ---- any granularity ----


def encoded(quotient: Tensor, dtype: torch.dtype, words: Tensor | None) -> Tensor:
    """Rounded to the nearest, or with random words up with the probability of the part that is cut off."""
    uniform = None if words is None else (words >> 8).to(torch.float32) * 2.0**-24
    if dtype == torch.int8:
        rounded = quotient.round() if uniform is None else (quotient.clamp(-127, 127) + uniform).floor()
        return torch.where(quotient.isnan(), 0.0, rounded).clamp(-127, 127).to(torch.int8)
    largest = torch.finfo(dtype).max
    if words is None or uniform is None:
        bits = quotient.clamp(-largest, largest).to(dtype).view(torch.uint8)
        return torch.where(quotient.isnan(), NAN_BITS, bits).view(dtype)
    mantissa, bias = (3, 7) if dtype == torch.float8_e4m3fn else (2, 15)
    dropped = 23 - mantissa
    clamped = quotient.abs().clamp(max=largest)
    magnitude = clamped.view(torch.int32).long()
    normal = ((magnitude + (words >> (32 - dropped))) >> dropped) - ((127 - bias) << mantissa)
    small = clamped < 2.0 ** (1 - bias)
    subnormal = (torch.where(small, clamped * 2.0 ** (bias - 1 + mantissa), 0.0) + uniform).floor().nan_to_num().long()
    sign = (quotient.view(torch.int32) >> 24).long() & 0x80
    bits = torch.where(small, subnormal, normal) | sign
    return torch.where(quotient.isnan(), NAN_BITS, bits).to(torch.uint8).view(dtype)


def _expanded(scale: Tensor, shape: torch.Size, granularity: str, block_size: int) -> Tensor:
    """A scale for each element."""
    if granularity in ("tensor", "row"):
        return scale.expand(shape)
    if granularity == "square":
        scale = scale.repeat_interleave(block_size, 0)[: shape[0]]
    return scale.repeat_interleave(block_size, -1)[..., : shape[-1]]


def _amax(x: Tensor, granularity: str, block_size: int) -> Tensor:
    if granularity == "tensor":
        return x.abs().amax() if x.numel() else x.new_zeros(())
    if granularity == "row":
        return x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros((*x.shape[:-1], 1))
    amax = _blocks(x, block_size).abs().amax(-1)
    return amax if granularity == "block" else _blocks(amax.t(), block_size).amax(-1).t()


def _quantized(
    input: Tensor, dtype: torch.dtype, granularity: str, block_size: int, seed: int | None, offset: int
) -> tuple[Tensor, Tensor]:
    x = input.float()
    if granularity in ("block", "square") and x.shape[-1] < block_size:
        amax = _amax(F.pad(x, (0, block_size - x.shape[-1])) if x.shape[-1] else x, granularity, block_size)
    else:
        amax = _amax(x, granularity, block_size)
    scale = _scale_of(amax, dtype)
    quotient = x / _expanded(scale, x.shape, granularity, block_size)
    words = None
    if seed is not None:
        rows = count_of(x.shape[:-1])
        words = random_words(torch.tensor(seed, device=x.device), rows, x.shape[-1], offset).reshape(x.shape)
    return encoded(quotient, dtype, words).contiguous(), scale.contiguous()


def quantize(
    input: Tensor, dtype: torch.dtype, granularity: str, block_size: int, seed: int | None, transposed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nothing = input.new_empty(0, dtype=dtype), input.new_empty(0, dtype=torch.float32)
    turned = _quantized(input.t(), dtype, granularity, block_size, seed, 1) if transposed else nothing
    return *_quantized(input, dtype, granularity, block_size, seed, 0), *turned


def dequantize(input: Tensor, scale: Tensor, granularity: str, block_size: int, dtype: torch.dtype) -> Tensor:
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    factors = _expanded(scale.to(acc), input.shape, granularity, block_size)
    return (input.to(acc) * factors).to(dtype).contiguous()
