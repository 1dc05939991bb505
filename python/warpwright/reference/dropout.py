"""Definitions of the dropout family."""

from __future__ import annotations

from torch import Tensor

from warpwright._check import acc_dtype
from warpwright.reference._philox import dropout_threshold, random_words


def dropout_add(input: Tensor, residual: Tensor | None, p: float, seed: Tensor, offset: int) -> Tensor:
    acc = acc_dtype(input.dtype)
    cols = input.shape[-1] if input.dim() else 1
    words = random_words(seed, input.numel() // max(cols, 1), cols, offset).reshape(input.shape)
    scale = 0.0 if p == 1 else 1 / (1 - p)
    output = input.to(acc) * ((words >= dropout_threshold(p)).to(acc) * scale)
    if residual is not None:
        output = output + residual
    return output.to(input.dtype).contiguous()


def dropout_add_backward(grad_output: Tensor, p: float, seed: Tensor, offset: int) -> Tensor:
    return dropout_add(grad_output, None, p, seed, offset)
