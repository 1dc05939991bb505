"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from warpwright import ops
from warpwright.optim._multi_tensor import KernelOptions, MultiTensorOptimizer, refuse


class _Adam(MultiTensorOptimizer):
    _moments: ClassVar[dict[str, bool]] = {"exp_avg": True, "exp_avg_sq": False}

    _refused: ClassVar[tuple[str, ...]] = ("differentiable",)

    def _maxima_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("max_exp_avg_sq",) if group["amsgrad"] else ()

    def _numbers(self, group: dict[str, Any]) -> dict[str, Any]:
        beta1, beta2 = map(float, group["betas"])
        return {"beta1": beta1, "beta2": beta2, "eps": group["eps"], "weight_decay": group["weight_decay"]}


class AdamW(_Adam, torch.optim.AdamW):
    """torch.optim.AdamW on warpwright.ops.adamw_: one launch for many tensors, float32 masters of half parameters.

    Args:
        params: parameters or groups, as torch.optim.AdamW's; float32, float16, bfloat16 (float64 on the CPU), dense.
        lr: a number, or a tensor of one element, which a captured graph reads anew at each replay.
        betas, eps, weight_decay, maximize: torch.optim.AdamW's.
        amsgrad: torch.optim.AdamW's: a step divides by the root of each element's largest second moment so far.
        differentiable: must be False.
        foreach, capturable, fused: ignored: every step is one launch for many tensors, and counts on the device.
        master_weights: for float16 and bfloat16 parameters keep a float32 copy, and the moments, in the state. Without
            it steps smaller than half a unit in the last place of a parameter are lost. False: as torch.
        eight_bit: keep moments as 8-bit codes, a quarter of their memory; warpwright.ops.adamw_ says which. amsgrad's
            maximum stays float32: a code is rounded anew whenever its block's scale grows, and a maximum, which must
            not fall, would keep every rise for good.
        stochastic_rounding: for bfloat16 parameters, in place of masters: float32 moments, and a parameter that is
            rounded up or down at random, so that small steps are kept on average.
        seed: of that rounding; the same seed gives the same training.
        max_grad_norm: gradients are scaled so that the norm of all of them together is at most this, in the step
            itself, as torch.nn.utils.clip_grad_norm_ would before it; they are not written to. `grad_norm` has the
            norm afterwards, on the device.

    Checkpoints are exchanged with torch.optim.AdamW in both directions; the state of a half parameter has one entry
    more, "master", which torch ignores, and which is made anew from the parameter where a checkpoint has none. 8-bit
    moments are named "exp_avg_codes" and "exp_avg_scales" and the like, which torch does not know; they are made of a
    checkpoint's moments, and back, when it is loaded.

    Works with warpwright.amp.GradScaler and torch.amp.GradScaler: gradients are unscaled, and steps with infinities
    skipped, on the device.

    Raises:
        RuntimeError: sparse gradients, or what warpwright.ops.adamw_ cannot take.
        ValueError: torch.optim.AdamW's, for hyperparameters out of range; differentiable.

    Source: warpwright.ops.adamw_'s; amsgrad: Reddi et al., "On the Convergence of Adam and Beyond", 2018, algorithm 2.
    """

    _operator = staticmethod(ops.adamw_)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **kernel: Any,
    ):
        refuse("AdamW", {"differentiable": differentiable})
        self.kernel = KernelOptions(**kernel)
        # `fused` tells GradScaler to leave unscaling to step, and load_state_dict to put step counts on the device.
        options: dict[str, Any] = {"maximize": maximize, "capturable": capturable, "fused": True}
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)


class Adam(_Adam, torch.optim.Adam):
    """torch.optim.Adam on warpwright.ops.adam_: AdamW, but the decay is added to the gradient.

    Args:
        weight_decay: torch.optim.Adam's.
        decoupled_weight_decay: must be False: that is AdamW.
        the others: as warpwright.optim.AdamW's, and checkpoints too.

    Raises:
        RuntimeError, ValueError: as warpwright.optim.AdamW.
    """

    _operator = staticmethod(ops.adam_)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **kernel: Any,
    ):
        refuse("Adam", {"differentiable": differentiable})
        if decoupled_weight_decay:
            raise ValueError("warpwright: Adam: decoupled_weight_decay must be False; warpwright.optim.AdamW has it")
        self.kernel = KernelOptions(**kernel)
        options: dict[str, Any] = {"maximize": maximize, "capturable": capturable, "fused": True}
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
