"""The shape of a channel norm's call: its tensors as (samples, channels, positions), its slabs, and its tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from warpwright._channels import lies_channels_last, slab_size
from warpwright.triton_kernels._common import acc_dtype, row_block, tl_acc

CELL_BLOCK = 256


def _planes(tensor: Tensor) -> Tensor:
    """(batch, channels, positions): a view where one stride walks through the positions."""
    return tensor.reshape(*tensor.shape[:2], tensor.shape[2:].numel())


@dataclass
class Partials:
    """(slabs, channels), of each `slab` positions in any order over all samples: their means, and the squared
    differences to those."""

    means: Tensor
    squares: Tensor
    slab: int

    @staticmethod
    def empty(positions: int, channels: int, slab: int, like: Tensor) -> Partials:
        means = like.new_empty((triton.cdiv(positions, slab), channels), dtype=acc_dtype(like.dtype))
        return Partials(means, torch.empty_like(means), slab)


@dataclass
class Call:
    """The shape of a call, and its tensors as (samples, channels, positions)."""

    shared: bool
    groups: int
    samples: int
    channels: int
    positions: int
    slab: int
    per_sample: int
    block_p: int
    block_c: int
    planes: list[Tensor | None]

    @staticmethod
    def of(input: Tensor, groups: int, shared: bool, *tensors: Tensor | None) -> Call:
        planes = [None if t is None else _planes(t) for t in tensors]
        samples, channels, positions = _planes(input).shape
        last = positions == 1 or lies_channels_last(input)
        if shared and last:
            # The samples become one: a view where one stride walks through the positions of all of them.
            planes = [
                None if t is None else t.movedim(1, 2).reshape(1, samples * positions, channels).movedim(2, 1)
                for t in planes
            ]
            samples, positions = 1, samples * positions
        slab = slab_size(positions, last)
        block_p = 32 if last else row_block(positions, slab)
        block_c = row_block(channels, 64) if last else 1
        return Call(shared, groups, samples, channels, positions, slab, -(-positions // slab), block_p, block_c, planes)

    @property
    def slabs(self) -> int:
        return self.samples * self.per_sample

    @property
    def cells(self) -> int:
        return self.groups if self.shared else self.samples * self.groups

    def units(self) -> tuple[int]:
        return (self.slabs * triton.cdiv(self.channels, self.block_c),)

    def in_slabs(self, slab: int) -> Call:
        """All samples as one, cut into the slabs of `Partials`. The planes stay what they are."""
        positions = self.samples * self.positions
        return replace(self, samples=1, positions=positions, slab=slab, per_sample=-(-positions // slab))

    def partials(self, like: Tensor) -> Tensor:
        return like.new_empty((self.slabs, self.channels), dtype=acc_dtype(like.dtype))

    def slab_sizes(self) -> tuple[int, ...]:
        return self.channels, self.positions, self.slab, self.per_sample

    def cell_sizes(self) -> tuple[int, ...]:
        return *self.slab_sizes(), self.groups, self.channels // self.groups

    def parts(self) -> tuple[int, float]:
        """Partial results of a cell, and its elements."""
        width = self.channels // self.groups
        samples = self.samples if self.shared else 1
        return samples * self.per_sample * width, float(samples * self.positions * width)

    def tile(self, dtype: torch.dtype) -> dict[str, Any]:
        return {"ACC": tl_acc(dtype), "BLOCK_P": self.block_p, "BLOCK_C": self.block_c, "num_warps": 4}

    def cell_block(self, dtype: torch.dtype) -> dict[str, Any]:
        return {"SHARED": self.shared, "ACC": tl_acc(dtype), "BLOCK": CELL_BLOCK}


def strided(tensor: Tensor | None, other: Tensor | None) -> tuple[Any, ...]:
    """A tensor and its strides; another one in the place of none."""
    found = other if tensor is None else tensor
    assert found is not None
    return found, *found.stride()
