"""Automatic mixed precision: torch.amp.GradScaler on warpwright's kernels."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from warpwright import distributed, ops
from warpwright._clip import norm_of
from warpwright.optim import MultiTensorOptimizer

_KNOWN = (torch.float32, torch.float16, torch.bfloat16)


class GradScaler(torch.amp.GradScaler):
    """torch.amp.GradScaler: the same constructor, methods and state_dict, for torch's optimizers and warpwright's.

    Gradients of a step are looked through for infinities without being written to. A warpwright optimizer unscales,
    skips and, with its max_grad_norm, clips on the device, in the step itself: an iteration reads its gradients twice,
    and never waits for the GPU. `unscale_` is one pass over all gradients. What these kernels do not take (sparse
    gradients, other devices) is torch's.

    Source: torch.amp.GradScaler; Micikevicius et al., "Mixed Precision Training", 2018, section 3.2.
    """

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        grads = _gradients(optimizer)
        if grads is None:
            return super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        if not allow_fp16 and any(grad.dtype == torch.float16 for grad in grads):
            raise ValueError("Attempting to unscale FP16 gradients.")
        lists: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for grad in grads:
            lists[grad.device, grad.dtype].append(grad)
        found: dict[torch.device, Tensor] = {}
        for (device, _), some in lists.items():
            flag = found.setdefault(device, found_inf.to(device, copy=True, non_blocking=True))
            _scale(some, inv_scale.to(device, torch.float32, non_blocking=True), flag)
        # Without a gradient torch reports the flag that it was given.
        return found or {found_inf.device: found_inf}

    def _check_inf_per_device(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What optimizers that unscale by themselves need before a step. torch's multiplies their gradients by 1."""
        grads = _gradients(optimizer)
        if not grads:
            return super()._check_inf_per_device(optimizer)
        if isinstance(optimizer, MultiTensorOptimizer):
            _, found_inf = optimizer.measure_gradients()
        else:
            _, found_inf = norm_of(grads)
        found: dict[str, Any] = {found_inf.device: found_inf}  # type: ignore[dict-item]
        self._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = found
        return found


def _scale(tensors: list[Tensor], multiplier: Tensor, flag: Tensor) -> None:
    """multi_tensor_scale_, also of DTensors: what one process found, all must know that have another part."""
    if not any(map(distributed.is_dtensor, tensors)):
        ops.multi_tensor_scale_(tensors, multiplier, found_inf=flag)
        return
    from warpwright.distributed import _lists

    lists: defaultdict[_lists.Cut, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        lists[_lists.cut_of(tensor)].append(tensor)
    for cut, some in lists.items():
        own = torch.zeros_like(flag)
        ops.multi_tensor_scale_(distributed.local_parts(some), multiplier, found_inf=own)
        torch.maximum(flag, _lists.together(own, cut, "max"), out=flag)


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor] | None:
    """All gradients, or None where our kernels do not take one of them."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    fits = all(g.dtype in _KNOWN and not g.is_sparse and g.device.type in ("cpu", "cuda") for g in grads)
    return grads if fits else None
