"""Definitions of the norm_quantize family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright.reference.norm import layer_norm, rms_norm
from warpwright.reference.quantize import MIN_SCALE, _blocks, quantize_fp8

INT8_MAX = 127.0


def _quantize_int8(x: Tensor, block_size: int | None) -> tuple[Tensor, Tensor]:
    """To the nearest integer, to the even one between two; NaN becomes 0, and its block's scale NaN."""
    blocks = _blocks(x, block_size)
    amax = blocks.abs().amax(-1) if blocks.shape[-1] else blocks.new_zeros(blocks.shape[:-1])
    scale = torch.where(amax == 0, 1.0, (amax / INT8_MAX).clamp(min=MIN_SCALE))
    quotient = (blocks / scale.unsqueeze(-1)).flatten(-2)[..., : x.shape[-1]]
    return quotient.nan_to_num(0.0).clamp(-INT8_MAX, INT8_MAX).round().to(torch.int8).contiguous(), scale.contiguous()


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
    total = input.new_empty(0)
    if residual is not None:
        total = (input.float() + residual.float()).to(input.dtype).contiguous()
    h = (input if residual is None else total).float()
    weight, bias = (None if t is None else t.float() for t in (weight, bias))
    options = (eps, weight_offset, 0.0, None, 0)
    outputs = layer_norm(h, None, 1, weight, bias, *options) if centred else rms_norm(h, None, 1, weight, *options)
    y = outputs[0]
    quantize = _quantize_int8(y, block_size) if dtype == torch.int8 else quantize_fp8(y, block_size, dtype)
    return *quantize, total
