"""A weight to the packed integers that `linear_w4a16` and `linear_w8a16` read."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import check_float, require
from warpwright.ops.packed import PIECE, PackedWeight, check_format, group_count


def quantize_packed(
    weight: Tensor, bits: int = 4, group_size: int | None = 128, symmetric: bool = True
) -> PackedWeight:
    """`pack_weights` in one kernel: a weight as the nearest integers of 4 or 8 bits, packed.

    Args:
        weight: (out_features, in_features), float32, float16, bfloat16 (float64 on the CPU), any strides.
        bits, group_size, symmetric: see `pack_weights`.

    Returns:
        A PackedWeight, the same bits as `pack_weights` gives of a weight without NaN.

    Raises:
        RuntimeError: weight, bits or group_size is something else.

    Reads the weight once where a group has up to 256 elements, twice from a cache else; quotients are taken in float32
    (float64 for float64). For weights that change: quantizing after each step of training, or a checkpoint while it is
    loaded. A NaN makes its group's scale NaN. Not differentiable.
    """
    data, scale, zero = call("quantize_packed", weight.detach(), bits, group_size, symmetric)
    return PackedWeight(data, scale, None if symmetric else zero, bits, group_size, weight.shape[1])


def _check(weight: Tensor, bits: int, group_size: int | None, symmetric: bool) -> None:
    op = "quantize_packed"
    check_float(op, "weight", weight)
    require(weight.dim() == 2, op, f"weight must have 2 dimensions, got {weight.dim()}")
    check_format(op, bits, group_size)


def _fake(weight: Tensor, bits: int, group_size: int | None, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    n, k = weight.shape
    groups = (n, group_count(k, group_size))
    data = weight.new_empty((n, -(-k // PIECE) * PIECE * bits // 8), dtype=torch.uint8)
    return data, weight.new_empty(groups), data.new_empty((0,) if symmetric else groups)


_registry.define("quantize_packed", family="packed", check=_check, fake=_fake)
