"""AdamW."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from warpwright import ops
from warpwright._check import acc_dtype

_MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW on warpwright.ops.adamw_: one launch for many tensors, float32 masters of half parameters.

    Args:
        params: parameters or groups, as torch.optim.AdamW's; float32, float16, bfloat16 (float64 on the CPU), dense.
        lr: a number.
        betas, eps, weight_decay, maximize: torch.optim.AdamW's.
        master_weights: for float16 and bfloat16 parameters keep a float32 copy, and the moments, in the state. Without
            it steps smaller than half a unit in the last place of a parameter are lost. False: as torch.

    Checkpoints are exchanged with torch.optim.AdamW in both directions; the state of a half parameter has one entry
    more, "master", which torch ignores, and which is made anew from the parameter where a checkpoint has none.

    Works with torch.amp.GradScaler: gradients are unscaled, and steps with infinities skipped, on the device.

    Raises:
        RuntimeError: sparse gradients, or what warpwright.ops.adamw_ cannot take.
        ValueError: torch.optim.AdamW's, for hyperparameters out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        master_weights: bool = True,
    ):
        self.master_weights = master_weights
        # `fused` tells GradScaler to leave unscaling to step, and load_state_dict to put step counts on the device.
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize, fused=True)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"master_weights": self.master_weights}

    def _has_master(self, param: Tensor) -> bool:
        return self.master_weights and param.dtype != acc_dtype(param.dtype)

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        """The state of one parameter, made at its first step."""
        state: dict[str, Tensor] = self.state[param]
        master = self._has_master(param)
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            dtype = torch.float32 if master else param.dtype
            for name in _MOMENTS:
                state[name] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
        if master and "master" not in state:
            # Here, not in load_state_dict: the model's own checkpoint may be loaded after the optimizer's.
            state["master"] = param.detach().to(torch.float32, memory_format=torch.preserve_format)
        return state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the loss of `closure`, which computes it and its gradients, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)  # Set by GradScaler for the time of this call.
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            buckets: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise RuntimeError("warpwright: AdamW: gradients must be dense, got a sparse one")
                buckets[param.device, param.dtype].append(param)
            for (device, _), params in buckets.items():
                states = [self._state_of(param) for param in params]
                steps = [state["step"] for state in states]
                torch._foreach_add_(steps, 1)
                scale = None if grad_scale is None else grad_scale.to(device, non_blocking=True)
                found = None if found_inf is None else found_inf.to(device, non_blocking=True)
                ops.adamw_(
                    params,
                    [param.grad for param in params if param.grad is not None],
                    [state["exp_avg"] for state in states],
                    [state["exp_avg_sq"] for state in states],
                    steps,
                    masters=[state["master"] for state in states if "master" in state],
                    lr=float(group["lr"]),
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                    maximize=group["maximize"],
                    grad_scale=scale,
                    found_inf=found,
                )
                if found is not None:  # A step that was skipped does not count.
                    torch._foreach_sub_(steps, [found] * len(steps))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch.optim.AdamW's; the float32 state of half parameters keeps its digits, which torch would round."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["fused"], group["foreach"] = True, None  # A checkpoint of torch's says how torch ran it.
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, param in zip(saved, own, strict=True):
            state = self.state.get(param)
            if not state:
                continue
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(param.device).reshape(())
            dtype = torch.float32 if self._has_master(param) else param.dtype
            original = state_dict["state"][key]
            for name in (*_MOMENTS, "master"):
                if name in original:
                    state[name] = original[name].detach().to(param.device, dtype, copy=True)
            if not self._has_master(param):
                state.pop("master", None)
