"""Definitions of the rotary family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype


def _factors(
    input: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    positions: Tensor | None,
    base: float | None,
    rotary_dim: int | None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (sequence, pairs) or with a batch in front."""
    if cos is None or sin is None:
        assert base is not None
        places = torch.arange(input.shape[1], device=input.device) if positions is None else positions
        dim = input.shape[3] if rotary_dim is None else rotary_dim
        pair = torch.arange(0, dim, 2, dtype=torch.float64, device=input.device)
        angles = places.double().unsqueeze(-1) * torch.pow(base, -pair / max(dim, 1))
        return angles.cos(), angles.sin()
    if positions is None:
        return cos, sin
    known = (positions >= 0) & (positions < cos.shape[0])
    if cos.shape[0] == 0:
        return (cos.new_full((*positions.shape, cos.shape[1]), torch.nan),) * 2
    rows = torch.where(known, positions, 0)
    looked_up = (torch.where(known.unsqueeze(-1), table[rows], torch.nan) for table in (cos, sin))
    return next(looked_up), next(looked_up)


def rotated(input: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """By cosines and sines of each position, (sequence, pairs) or with a batch in front."""
    acc = acc_dtype(input.dtype)
    rotary_dim = 2 * cos.shape[-1]
    x = input.to(acc)
    turning, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    c, s = cos.to(acc).unsqueeze(-2), sin.to(acc).unsqueeze(-2)  # One row of a position for all its heads.
    a, b = (turning[..., 0::2], turning[..., 1::2]) if interleaved else turning.chunk(2, -1)
    pair = (a * c - b * s, b * c + a * s)
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat((turned, rest), -1).to(input.dtype).contiguous()


def rotary_embedding(
    input: Tensor,
    key: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    positions: Tensor | None,
    base: float | None,
    rotary_dim: int | None,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    factors = _factors(input, cos, sin, positions, base, rotary_dim)
    key_output = input.new_empty(0) if key is None else rotated(key, *factors, interleaved)
    return rotated(input, *factors, interleaved), key_output


def rotary_embedding_backward(
    grad_output: Tensor,
    grad_key: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    positions: Tensor | None,
    base: float | None,
    rotary_dim: int | None,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    c, s = _factors(grad_output, cos, sin, positions, base, rotary_dim)
    return rotary_embedding(grad_output, grad_key, c, -s, None, None, None, interleaved)
