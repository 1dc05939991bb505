"""QK norm with rotary embedding: queries and keys by tables of angles in float32, as models keep them."""

from __future__ import annotations

import torch

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import suffix
from warpwright.testing import Sample


@operator("qk_norm_rotary", smaller=halve("batch", "sequence", "heads"))
def qk_norm_rotary(
    draw: Draw, *, batch: int, sequence: int, heads: int, key_heads: int, head_dim: int, interleaved: bool = False
) -> Sample:
    angles = draw.tensor(sequence, head_dim // 2, low=0, high=6.283, grad=False, dtype=torch.float32)
    query, key = (draw.tensor(batch, sequence, n, head_dim) for n in (heads, key_heads))
    label = f"{batch} x {sequence} x {heads}+{key_heads} x {head_dim}"
    return Sample(
        label + suffix(layout="interleaved" if interleaved else None),
        (query, key, draw.tensor(head_dim), draw.tensor(head_dim), angles.cos(), angles.sin()),
        {"interleaved": True} if interleaved else {},
    )
