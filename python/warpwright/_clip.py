"""Gradient clipping by norm, without waiting for the device."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from warpwright import distributed, ops


def _by_kind(tensors: Iterable[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
    lists: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        lists[tensor.device, tensor.dtype].append(tensor)
    return lists


def _norm_of_kind(tensors: list[Tensor], order: float) -> tuple[Tensor, Tensor]:
    if not any(map(distributed.is_dtensor, tensors)):
        return ops.multi_tensor_norm(tensors, order)
    from warpwright.distributed import _lists

    found = []
    for cut, some in _lists.by_cut(tensors).items():
        of_parts = ops.multi_tensor_norm([_lists.here(tensor) for tensor in some], order)
        found.append(_lists.norm_together(*of_parts, cut, order))
    norms, flags = (torch.stack(values) for values in zip(*found, strict=True))
    return torch.linalg.vector_norm(norms, order), flags.amax()


def norm_of(tensors: Iterable[Tensor], order: float = 2.0) -> tuple[Tensor, Tensor]:
    """multi_tensor_norm of tensors of any dtypes and devices, on the first one's; of whole DTensors."""
    results = [_norm_of_kind(some, order) for some in _by_kind(tensors).values()]
    if len(results) <= 1:
        return results[0] if results else (torch.zeros(()), torch.zeros(()))
    device = results[0][0].device
    dtype = max((norm.dtype for norm, _ in results), key=lambda d: torch.finfo(d).bits)
    norms = torch.stack([norm.to(device, non_blocking=True).to(dtype) for norm, _ in results])
    found = torch.stack([flag.to(device, non_blocking=True) for _, flag in results])
    return torch.linalg.vector_norm(norms, order), found.amax()


def clip_multiplier(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this norm are multiplied by: torch.nn.utils.clip_grad_norm_'s."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """torch.nn.utils.clip_grad_norm_ in two passes over all gradients: one reads them, one scales them.

    Args:
        parameters: tensors with gradients, or one; float32, float16, bfloat16 (float64 on the CPU), of any mix. Of
            DTensors all processes of their mesh call this, and exchange two numbers.
        max_norm: what the norm is at most afterwards.
        norm_type: 2 or inf. Of another order torch's own function clips.
        error_if_nonfinite: raise where the norm is infinite or NaN. That waits for the device; nothing else does.
        foreach: ignored: there is one way.

    Returns:
        The norm of all gradients as one vector, before clipping: one element, no DTensor, on the first gradient's
        device, float32 for half gradients too, where torch rounds it to their dtype. 0 where there are none.

    Raises:
        RuntimeError: a norm that is not finite, if asked; gradients that multi_tensor_norm does not take.

    A gradient of a warpwright optimizer need not be clipped beforehand: with its max_grad_norm the step does it, and
    nothing is written twice.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    order = float(norm_type)
    grads = [p.grad for p in parameters if p.grad is not None]
    if order != 2 and not (math.isinf(order) and order > 0):
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, order, error_if_nonfinite, foreach)
    if not grads:
        return torch.tensor(0.0)
    norm, _ = norm_of(grads, order)
    if error_if_nonfinite and not norm.isfinite():
        message = f"the norm of order {order:g} of the gradients must be finite, got {norm.item()}"
        raise RuntimeError(f"warpwright: clip_grad_norm_: {message}")
    multiplier = clip_multiplier(norm, float(max_norm))
    for (device, dtype), some in _by_kind(grads).items():
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        ops.multi_tensor_scale_(distributed.local_parts(some), multiplier.to(device, acc, non_blocking=True))
    return norm
