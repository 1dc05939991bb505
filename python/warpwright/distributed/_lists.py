"""Many DTensors at once, as optimizers have them: the parts that lie here, and numbers about the whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate

from warpwright.distributed import is_dtensor

#: How tensors lie: a mesh, and for each of its dimensions whether processes have parts; None for plain tensors.
Cut = tuple[Any, tuple[bool, ...]] | None


def here(tensor: Tensor) -> Tensor:
    """The part in this process: of a DTensor its local tensor, which writing to writes to it."""
    if not is_dtensor(tensor):
        return tensor
    local = cast(DTensor, tensor).to_local()
    return cast(Tensor, local.wait()) if hasattr(local, "wait") else local


def placed_like(grad: Tensor, param: Tensor) -> Tensor:
    """A gradient that lies as its parameter does: a sum whose parts are still apart is added up."""
    if not is_dtensor(grad) or not is_dtensor(param):
        return grad
    grad, param = cast(DTensor, grad), cast(DTensor, param)
    if grad.placements == param.placements:
        return grad
    return grad.redistribute(param.device_mesh, param.placements)


def cut_of(tensor: Tensor) -> Cut:
    if not is_dtensor(tensor):
        return None
    tensor = cast(DTensor, tensor)
    parts = tuple(not placement.is_replicate() for placement in tensor.placements)
    return (tensor.device_mesh, parts) if any(parts) else None


def part_of(tensor: Tensor) -> int:
    """The number of the part in this process; 0 for what is whole."""
    cut, part = cut_of(tensor), 0
    if cut is not None:
        mesh, parts = cut
        for i, apart in enumerate(parts):
            if apart:
                part = part * mesh.size(i) + mesh.get_local_rank(i)
    return part


def by_cut(tensors: Iterable[Tensor]) -> dict[Cut, list[Tensor]]:
    """Tensors by how they lie. Parts of sums are added up first."""
    lists: defaultdict[Cut, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if is_dtensor(tensor) and any(placement.is_partial() for placement in cast(DTensor, tensor).placements):
            from warpwright.distributed._local import summed

            tensor = summed(cast(DTensor, tensor))
        lists[cut_of(tensor)].append(tensor)
    return lists


def together(value: Tensor, cut: Cut, reduction: str) -> Tensor:
    """Numbers of the parts as numbers of the whole: "sum" or "max", exchanged where there are parts."""
    if cut is None:
        return value
    mesh, parts = cut
    placements: Sequence[Placement] = [Partial(reduction) if apart else Replicate() for apart in parts]
    return DTensor.from_local(value, mesh, placements, run_check=False).full_tensor()


def norm_together(norm: Tensor, found: Tensor, cut: Cut, order: float) -> tuple[Tensor, Tensor]:
    """A norm and whether something is not finite, of the parts and then of the whole, in one exchange."""
    if cut is None:
        return norm, found
    # In double precision, a square has no more rounding than the norm had, and cannot overflow.
    wide = norm.double()
    both = torch.stack([wide if order != 2 else wide.square(), found.double()])
    both = together(both, cut, "sum" if order == 2 else "max")
    whole = both[0] if order != 2 else both[0].sqrt()
    return whole.to(norm.dtype), (both[1] > 0).to(found.dtype)
