"""The same values in other places: strided, offset, transposed and expanded tensors for any sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _unused(tensor: Tensor, cols: int) -> Tensor:
    """Room for `tensor` with rows of `cols` elements; NaN, where the dtype has it, so that a read beside it shows."""
    room = tensor.new_empty(*tensor.shape[:-1], cols)
    return room.fill_(torch.nan) if tensor.is_floating_point() and tensor.element_size() > 1 else room


def _stepped(tensor: Tensor) -> Tensor:
    """Every second element of a tensor twice as wide: no stride is 1."""
    return _unused(tensor, tensor.shape[-1] * 2)[..., ::2].copy_(tensor)


def _offset(tensor: Tensor) -> Tensor:
    """One element past the start of its storage: not aligned to 16 bytes."""
    flat = tensor.new_empty(tensor.numel() + 1)[1:]
    return flat.view(tensor.shape).copy_(tensor)


def _padded(tensor: Tensor) -> Tensor:
    """Rows that start at multiples of 8 elements, with at least one unused element between them."""
    cols = tensor.shape[-1]
    return _unused(tensor, (cols // 8 + 1) * 8)[..., :cols].copy_(tensor)


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
