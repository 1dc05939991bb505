"""LAMB."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor

from warpwright import ops
from warpwright._check import acc_dtype
from warpwright.optim._checks import check_adam_numbers
from warpwright.optim._multi_tensor import KernelOptions, MultiTensorOptimizer


class Lamb(MultiTensorOptimizer):
    """LAMB on warpwright.ops.lamb_: Adam's direction with decay, scaled for each parameter to the parameter's length.

    Args:
        params: parameters or groups; float32, float16, bfloat16 (float64 on the CPU), dense.
        lr: a number, or a tensor of one element.
        betas, eps, weight_decay: as Adam's; the decay is part of the direction.
        maximize: steps along the gradient instead of against it.
        the others: as warpwright.optim.AdamW's. Moments are always float32, or codes with eight_bit.

    Raises:
        RuntimeError: sparse gradients, or what warpwright.ops.lamb_ cannot take.
        ValueError: hyperparameters out of range.

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020.
    """

    _operator = staticmethod(ops.lamb_)
    _moments: ClassVar[dict[str, bool]] = {"exp_avg": True, "exp_avg_sq": False}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        **kernel: Any,
    ):
        check_adam_numbers(lr, betas, eps, weight_decay)
        self.kernel = KernelOptions(**kernel)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"maximize": maximize, "fused": True})

    def _moment_dtype(self, param: Tensor) -> Any:
        return acc_dtype(param.dtype)

    def _numbers(self, group: dict[str, Any]) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {"beta1": beta1, "beta2": beta2, "eps": group["eps"], "weight_decay": group["weight_decay"]}
