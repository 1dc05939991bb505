"""Definitions of the rotary family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype


def rotary_embedding(input: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    acc = acc_dtype(input.dtype)
    rotary_dim = 2 * cos.shape[-1]
    x = input.to(acc)
    rotated, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    c, s = cos.to(acc).unsqueeze(-2), sin.to(acc).unsqueeze(-2)  # One row of a position for all its heads.
    a, b = (rotated[..., 0::2], rotated[..., 1::2]) if interleaved else rotated.chunk(2, -1)
    pair = (a * c - b * s, b * c + a * s)
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat((turned, rest), -1).to(input.dtype).contiguous()


def rotary_embedding_backward(grad_output: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    return rotary_embedding(grad_output, cos, -sin, interleaved)
