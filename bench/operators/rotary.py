"""Rotary position embedding: (batch, sequence, heads, head_dim) by tables of angles in float32, as models keep them."""

from __future__ import annotations

import torch

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import suffix
from warpwright.testing import Sample


@operator("rotary_embedding", smaller=halve("batch", "heads", "sequence"))
def rotary_embedding(
    draw: Draw, *, batch: int, sequence: int, heads: int, head_dim: int, interleaved: bool = False
) -> Sample:
    angles = draw.tensor(sequence, head_dim // 2, low=0, high=6.283, grad=False, dtype=torch.float32)
    label = f"{batch} x {sequence} x {heads} x {head_dim}"
    return Sample(
        label + suffix(layout="interleaved" if interleaved else None),
        (draw.tensor(batch, sequence, heads, head_dim), angles.cos(), angles.sin()),
        {"interleaved": True} if interleaved else {},
    )
