"""The same values in other places: strided, offset, transposed and expanded tensors for any sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _stepped(tensor: Tensor) -> Tensor:
    """Every second element of a tensor twice as wide: no stride is 1."""
    wide = tensor.new_empty(*tensor.shape[:-1], tensor.shape[-1] * 2)
    return wide[..., ::2].copy_(tensor)


def _offset(tensor: Tensor) -> Tensor:
    """One element past the start of its storage: not aligned to 16 bytes."""
    flat = tensor.new_empty(tensor.numel() + 1)[1:]
    return flat.view(tensor.shape).copy_(tensor)


def _padded(tensor: Tensor) -> Tensor:
    """Rows with three unused elements between them."""
    return tensor.new_empty(*tensor.shape[:-1], tensor.shape[-1] + 3)[..., : tensor.shape[-1]].copy_(tensor)


def _transposed(tensor: Tensor) -> Tensor:
    """The first and the last dimension swapped in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "stepped": _stepped,
    "offset": _offset,
    "padded": _padded,
    "transposed": _transposed,
}


def relayout(tensor: Tensor, layout: str) -> Tensor:
    """`tensor`'s values as a leaf in another memory layout; tensors without dimensions are left as they are."""
    if tensor.dim() == 0:
        return tensor
    with torch.no_grad():
        moved = LAYOUTS[layout](tensor.detach())
    return moved.requires_grad_(tensor.requires_grad)
