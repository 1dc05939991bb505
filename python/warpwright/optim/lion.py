"""Lion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor

from warpwright import ops
from warpwright.optim._checks import check_adam_numbers
from warpwright.optim._multi_tensor import KernelOptions, MultiTensorOptimizer


class Lion(MultiTensorOptimizer):
    """Lion on warpwright.ops.lion_: each element moves by lr against the sign of a momentum.

    Args:
        params: parameters or groups; float32, float16, bfloat16 (float64 on the CPU), dense.
        lr: a number, or a tensor of one element; a third to a tenth of AdamW's.
        betas: of the direction, and of the momentum that is kept.
        weight_decay: times lr and the parameter, subtracted; three to ten times AdamW's.
        maximize: steps along the gradient instead of against it.
        the others: as warpwright.optim.AdamW's.

    Raises:
        RuntimeError: sparse gradients, or what warpwright.ops.lion_ cannot take.
        ValueError: hyperparameters out of range.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023.
    """

    _operator = staticmethod(ops.lion_)
    _moments: ClassVar[dict[str, bool]] = {"exp_avg": True}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **kernel: Any,
    ):
        check_adam_numbers(lr, betas, 0.0, weight_decay)
        self.kernel = KernelOptions(**kernel)
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize, "fused": True}
        super().__init__(params, defaults)

    def _numbers(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"beta1": group["betas"][0], "beta2": group["betas"][1], "weight_decay": group["weight_decay"]}
