"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from warpwright import ops
from warpwright.optim._multi_tensor import KernelOptions, MultiTensorOptimizer, refuse


class SGD(MultiTensorOptimizer, torch.optim.SGD):
    """torch.optim.SGD on warpwright.ops.sgd_: one launch for many tensors, float32 masters of half parameters.

    Args:
        params: parameters or groups, as torch.optim.SGD's; float32, float16, bfloat16 (float64 on the CPU), dense.
        lr: a number, or a tensor of one element.
        momentum, dampening, weight_decay, nesterov, maximize: torch.optim.SGD's.
        differentiable: must be False.
        foreach, fused: ignored.
        the others: as warpwright.optim.AdamW's.

    Checkpoints are exchanged with torch.optim.SGD in both directions; the state has an entry more, "step", which torch
    ignores: a parameter whose first steps were all skipped begins its momentum later.

    Raises:
        RuntimeError: sparse gradients, or what warpwright.ops.sgd_ cannot take.
        ValueError: torch.optim.SGD's, for hyperparameters out of range; differentiable.
    """

    _operator = staticmethod(ops.sgd_)
    _moments: ClassVar[dict[str, bool]] = {"momentum_buffer": True}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **kernel: Any,
    ):
        refuse("SGD", {"differentiable": differentiable})
        self.kernel = KernelOptions(**kernel)
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize, fused=True)

    def _moments_of(self, group: dict[str, Any]) -> dict[str, bool]:
        return self._moments if group["momentum"] else {}

    def _numbers(self, group: dict[str, Any]) -> dict[str, Any]:
        return {name: group[name] for name in ("momentum", "dampening", "weight_decay", "nesterov")}
