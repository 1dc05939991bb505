"""LAMB."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor

from warpwright import distributed, ops
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

    def _run(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        moments: list[list[Tensor]],
        steps: list[Tensor],
        masters: list[Tensor],
        numbers: dict[str, Any],
    ) -> None:
        """Of parameters that are cut, a length is a sum over all parts."""
        if not any(map(distributed.is_cut, params)):
            super()._run(params, grads, moments, steps, masters, numbers)
            return
        from warpwright.distributed._lists import cut_of
        from warpwright.optim._cut_lamb import cut_lamb_

        if numbers.pop("rounding_seed", None) is not None:
            message = "stochastic_rounding needs whole parameters, got a DTensor of which each process has a part"
            raise RuntimeError(f"warpwright: Lamb: {message}")
        grads = [distributed.placed_like(grad, param) for grad, param in zip(grads, params, strict=True)]
        for cut in dict.fromkeys(map(cut_of, params)):
            at = [i for i, param in enumerate(params) if cut_of(param) == cut]
            lists = [[tensors[i] for i in at] if tensors else [] for tensors in (params, grads, *moments)]
            own = [masters[i] for i in at] if masters else []
            if cut is None:
                super()._run(lists[0], lists[1], lists[2:], [steps[i] for i in at], own, numbers)
            else:
                values, slopes, first, second = map(distributed.local_parts, lists)
                kept = distributed.local_parts(own)
                cut_lamb_(values, slopes, first, second, [steps[i] for i in at], cut=cut, masters=kept, **numbers)

    def _numbers(self, group: dict[str, Any]) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {"beta1": beta1, "beta2": beta2, "eps": group["eps"], "weight_decay": group["weight_decay"]}
