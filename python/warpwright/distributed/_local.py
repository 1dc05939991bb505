"""Ops whose parts a placement cannot describe, on the local tensors of DTensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from warpwright._backend import call
from warpwright._check import fail, require

#: Meshes, and which dimensions hold the same, on which the processes were seen to draw the same random numbers.
_seen_alike: set[tuple[DeviceMesh, tuple[int, ...]]] = set()


def summed(tensor: DTensor) -> DTensor:
    """With parts of a sum added up."""
    if not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    return tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])


def of_local(local: Tensor, like: DTensor) -> DTensor:
    """The DTensor of which this is the part that `local` is of `like`; row by row."""
    strides = torch.empty(like.shape, device="meta").stride()
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=strides
    )


# ---- dropout ----


def dropout_add(input: DTensor, residual: DTensor | None, p: float, seed: Tensor, offset: int, drawn: bool) -> Tensor:
    """Each part has a mask of its own, the same in all processes that hold it."""
    input = summed(input)
    if residual is not None:
        residual = residual.redistribute(input.device_mesh, input.placements)
    if drawn and not torch.compiler.is_compiling():
        _check_alike(seed, input)
    part = 0
    for i, placement in enumerate(input.placements):
        if not placement.is_replicate():
            part = part * input.device_mesh.size(i) + input.device_mesh.get_local_rank(i)
    # Far from the offsets that are given by hand.
    arguments = (input.to_local(), None if residual is None else residual.to_local(), p, seed, offset + (part << 16))
    return of_local(call("dropout_add", *arguments), input)


def _check_alike(seed: Tensor, input: DTensor) -> None:
    """Processes that hold the same must drop the same. Looked at once for a mesh, as torch does for its own."""
    mesh = input.device_mesh
    same = tuple(i for i, placement in enumerate(input.placements) if placement.is_replicate() and mesh.size(i) > 1)
    if not same or (mesh, same) in _seen_alike:
        return
    everyone: Sequence[Placement] = [Shard(0)] * mesh.ndim
    with torch.no_grad():
        seeds = DTensor.from_local(seed, mesh, everyone, run_check=False).full_tensor().reshape(tuple(mesh.shape))
    alike = bool((seeds.amax(same) == seeds.amin(same)).all())
    message = "processes that hold the same part of input must draw the same random numbers: call torch.manual_seed "
    require(alike, "dropout_add", message + "with the same number in each, or give them a seed")
    _seen_alike.add((mesh, same))


# ---- batch norm in training, whose batch is cut ----


def cut_along(tensor: DTensor, dim: int) -> list[int]:
    """The dimensions of the mesh along which this one of the tensor is cut."""
    return [i for i, placement in enumerate(tensor.placements) if placement.is_shard(dim)]


def batch_norm(
    input: DTensor, running: Sequence[Any], affine: Sequence[Any], momentum: float, eps: float, residual: Any,
    activation: str,
) -> Tensor:  # fmt: skip
    """Over the processes that have the other parts of the batch, 3 and 2 numbers a channel of which are exchanged."""
    from warpwright.ops.sync_batch_norm import sync_batch_norm

    op, mesh, input = "batch_norm", input.device_mesh, summed(input)
    cuts = cut_along(input, 0)
    rest = [placement for i, placement in enumerate(input.placements) if i not in cuts]
    if len(cuts) != 1 or not all(placement.is_replicate() for placement in rest):
        fail(op, f"input in training must be cut along its batch by one dimension of the mesh, got {input.placements}")
    for tensor in (*running, *affine):
        if tensor is None:
            continue
        whole = isinstance(tensor, DTensor) and all(placement.is_replicate() for placement in tensor.placements)
        require(whole, op, "weight, bias and running statistics must be DTensors that are whole in every process")
    parts: list[Placement] = [Partial() if i in cuts else Replicate() for i in range(mesh.ndim)]
    weight, bias = (None if t is None else t.to_local(grad_placements=parts) for t in affine)
    if residual is not None:
        residual = residual.redistribute(mesh, input.placements).to_local()
    mean, var = (None if t is None else t.to_local() for t in running)
    group = mesh.get_group(cuts[0])
    result = sync_batch_norm(input.to_local(), mean, var, weight, bias, residual, momentum, eps, activation, group)
    return DTensor.from_local(result, mesh, input.placements, run_check=False, shape=input.shape, stride=input.stride())
