"""Rotary position embedding: (batch, sequence, heads, head_dim) by tables of angles in float32, as models keep them, or
by angles that are computed."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from warpwright.bench.case import Draw, halve, operator
from warpwright.bench.operators._common import suffix
from warpwright.testing import Sample

Angles = Literal["table", "positions", "computed"]


def _angles(
    draw: Draw, batch: int, sequence: int, head_dim: int, interleaved: bool, angles: Angles
) -> tuple[list[Tensor], dict[str, Any]]:
    """A table of the sequence, one with each token's own row of it, or none."""
    kwargs: dict[str, Any] = {"interleaved": True} if interleaved else {}
    if angles == "computed":
        return [], kwargs | {"base": 10000.0}
    table = draw.tensor(sequence, head_dim // 2, low=0, high=6.283, grad=False, dtype=torch.float32)
    if angles == "positions":
        kwargs["positions"] = draw.integers(batch, sequence, low=0, high=sequence)
    return [table.cos(), table.sin()], kwargs


def _suffix(interleaved: bool, angles: Angles) -> str:
    return suffix(layout="interleaved" if interleaved else None, angles=None if angles == "table" else angles)


@operator("rotary_embedding", smaller=halve("batch", "heads", "sequence"))
def rotary_embedding(
    draw: Draw,
    *,
    batch: int,
    sequence: int,
    heads: int,
    head_dim: int,
    interleaved: bool = False,
    angles: Angles = "table",
) -> Sample:
    tables, kwargs = _angles(draw, batch, sequence, head_dim, interleaved, angles)
    label = f"{batch} x {sequence} x {heads} x {head_dim}{_suffix(interleaved, angles)}"
    return Sample(label, (draw.tensor(batch, sequence, heads, head_dim), *tables), kwargs)


@operator("rotary_embedding_qk", smaller=halve("batch", "heads", "key_heads", "sequence"))
def rotary_embedding_qk(
    draw: Draw,
    *,
    batch: int,
    sequence: int,
    heads: int,
    key_heads: int,
    head_dim: int,
    interleaved: bool = False,
    angles: Angles = "table",
) -> Sample:
    tables, kwargs = _angles(draw, batch, sequence, head_dim, interleaved, angles)
    label = f"{batch} x {sequence} x ({heads} + {key_heads}) x {head_dim}{_suffix(interleaved, angles)}"
    query, key = (draw.tensor(batch, sequence, n, head_dim) for n in (heads, key_heads))
    return Sample(label, (query, key, *tables), kwargs)
