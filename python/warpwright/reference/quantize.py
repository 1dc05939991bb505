"""Definitions of the quantize family."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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


def quantize_fp8(input: Tensor, block_size: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    largest = torch.finfo(dtype).max
    x = _blocks(input.float(), block_size)
    amax = x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    scale = torch.where(amax == 0, 1.0, (amax / largest).clamp(min=MIN_SCALE))
    quotient = (x / scale.unsqueeze(-1)).flatten(-2)[..., : input.shape[-1]]
    bits = quotient.clamp(-largest, largest).to(dtype).view(torch.uint8)
    return torch.where(quotient.isnan(), NAN_BITS, bits).view(dtype).contiguous(), scale.contiguous()


def dequantize_fp8(input: Tensor, scale: Tensor, block_size: int | None, dtype: torch.dtype) -> Tensor:
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    x = _blocks(input.to(acc), block_size) * scale.to(acc).unsqueeze(-1)
    return x.flatten(-2)[..., : input.shape[-1]].to(dtype).contiguous()
