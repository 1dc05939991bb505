"""What every optimizer here has in common: its state, its checkpoints, and one call of an operator for many tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from warpwright import distributed
from warpwright._check import acc_dtype
from warpwright._clip import clip_multiplier, norm_of
from warpwright._optim_rules import ZERO_CODE, code_blocks, decode_moment, encode_moment
from warpwright.distributed import local_parts

#: What torch's constructors take and these kernels do not have.
UNSUPPORTED = ("amsgrad", "differentiable")

#: By device, dtype, and which part of a DTensor lies here: its random bits are others.
Lists = dict[tuple[torch.device, torch.dtype, int], list[Tensor]]


@dataclass(frozen=True)
class KernelOptions:
    """What these optimizers take beside torch.optim's arguments.

    Attributes:
        master_weights: for float16 and bfloat16 parameters keep a float32 copy, and float32 moments, in the state.
            Without it steps smaller than half a unit in the last place of a parameter are lost. False: as torch.
        eight_bit: keep moments as 8-bit codes with a float32 scale for every 256 elements; running maxima stay float32.
        stochastic_rounding: for bfloat16 parameters, in place of masters: float32 moments (or codes), and a parameter
            that is rounded up or down at random, so that small steps are kept on average.
        seed: of that rounding; the same seed gives the same training.
        max_grad_norm: gradients are scaled so that the norm of all of them together is at most this, in the step
            itself, as torch.nn.utils.clip_grad_norm_ would before it; they are not written to.
    """

    master_weights: bool = True
    eight_bit: bool = False
    stochastic_rounding: bool = False
    seed: int = 0
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"Invalid max_grad_norm: {self.max_grad_norm}")


class MultiTensorOptimizer(torch.optim.Optimizer):
    """The first base of each optimizer here; the second is torch.optim's, or none."""

    #: The operator, and the names of its moments in the state, in its order -> whether they have a sign.
    _operator: ClassVar[Callable[..., None]]
    _moments: ClassVar[dict[str, bool]]
    #: What a checkpoint's groups may ask for that these kernels do not have.
    _refused: ClassVar[tuple[str, ...]] = UNSUPPORTED
    #: Attributes that GradScaler reads: step unscales, and skips, by itself.
    _step_supports_amp_scaling = True

    kernel: KernelOptions
    #: The norm of all gradients at the last step, unscaled and before clipping, on the device; with max_grad_norm.
    grad_norm: Tensor | None = None
    #: What `measure_gradients` found, for the step that follows.
    _measured: tuple[Tensor, Tensor] | None = None

    @property
    def master_weights(self) -> bool:
        return self.kernel.master_weights

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"kernel": self.kernel}

    # ---- what differs between optimizers ----

    def _numbers(self, group: dict[str, Any]) -> dict[str, Any]:
        """The operator's numbers beside lr."""
        raise NotImplementedError

    def _moments_of(self, group: dict[str, Any]) -> dict[str, bool]:
        """The moments that this group's parameters have."""
        return self._moments

    def _maxima_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The running maxima in their state, which are never codes."""
        return ()

    # ---- state ----

    def _rounds_stochastically(self, param: Tensor) -> bool:
        return self.kernel.stochastic_rounding and param.dtype == torch.bfloat16

    def _has_master(self, param: Tensor) -> bool:
        half = param.dtype != acc_dtype(param.dtype)
        return half and self.kernel.master_weights and not self._rounds_stochastically(param)

    def _moment_dtype(self, param: Tensor) -> torch.dtype:
        """Of moments that are not codes, and of running maxima."""
        keeps_digits = self._has_master(param) or self._rounds_stochastically(param) or self._has_codes(param)
        return torch.float32 if keeps_digits else param.dtype

    def _has_codes(self, param: Tensor) -> bool:
        return self.kernel.eight_bit and param.dtype != torch.float64

    def _state_of(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state of one parameter, made at its first step."""
        state: dict[str, Tensor] = self.state[param]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
        moments = self._moments_of(group)
        for name in (*moments, *self._maxima_of(group)):
            if name in state or f"{name}_codes" in state:
                continue
            if name in moments and self._has_codes(param):
                self._refuse_cut_codes(param)
                zero = ZERO_CODE if moments[name] else 0
                state[f"{name}_codes"] = torch.full(param.shape, zero, dtype=torch.uint8, device=param.device)
                state[f"{name}_scales"] = torch.zeros(code_blocks(param.numel()), device=param.device)
            else:
                dtype = self._moment_dtype(param)
                state[name] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
        if self._has_master(param) and "master" not in state:
            # Here, not in load_state_dict: the model's own checkpoint may be loaded after the optimizer's.
            state["master"] = param.detach().to(torch.float32, memory_format=torch.preserve_format)
        return state

    def _refuse_cut_codes(self, param: Tensor) -> None:
        """256 elements share a scale: parts of a tensor have other blocks than the whole, whose checkpoint is one."""
        if distributed.is_cut(param):
            message = "eight_bit moments need whole parameters, got a DTensor of which each process has a part"
            raise RuntimeError(f"warpwright: {type(self).__name__}: {message}")

    # ---- the step ----

    def _lists(self, group: dict[str, Any]) -> Lists:
        """The group's parameters that have a gradient, by device and dtype."""
        lists: defaultdict[tuple[torch.device, torch.dtype, int], list[Tensor]] = defaultdict(list)
        for param in group["params"]:
            if param.grad is None:
                continue
            if param.grad.is_sparse:
                raise RuntimeError(f"warpwright: {type(self).__name__}: gradients must be dense, got a sparse one")
            part = distributed.part_of(param) if self._rounds_stochastically(param) else 0
            lists[param.device, param.dtype, part].append(param)
        return lists

    def measure_gradients(self) -> tuple[Tensor, Tensor]:
        """The norm of all gradients together, and 1 where one is infinite or NaN, else 0; both on the first device.

        warpwright.amp.GradScaler calls it before a step, which then does not measure again.
        """
        grads = (p.grad for group in self.param_groups for p in group["params"] if p.grad is not None)
        self._measured = norm_of(grads)
        return self._measured

    def _multiplier(self, grad_scale: Tensor | None) -> Tensor | None:
        """What gradients are multiplied by, once they are unscaled, so that their norm is at most max_grad_norm."""
        measured, self._measured = self._measured, None
        if self.kernel.max_grad_norm is None:
            return None
        norm, _ = measured or norm_of(
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        )
        self.grad_norm = norm if grad_scale is None else norm / grad_scale.to(norm.device, non_blocking=True)
        return clip_multiplier(self.grad_norm, self.kernel.max_grad_norm)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the loss of `closure`, which computes it and its gradients, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)  # Set by GradScaler for the time of this call.
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        multiplier = self._multiplier(grad_scale)
        calls = 0
        for group in self.param_groups:
            for (device, _, part), params in self._lists(group).items():

                def here(scalar: Tensor | None, device: torch.device = device) -> Tensor | None:
                    return None if scalar is None else scalar.to(device, torch.float32, non_blocking=True)

                scalars = {
                    "grad_scale": here(grad_scale),
                    "found_inf": here(found_inf),
                    "grad_multiplier": here(multiplier),
                    "lr": here(group["lr"]) if isinstance(group["lr"], Tensor) else float(group["lr"]),
                }
                # Parameters of other calls, and other parts of a parameter, have other random bits.
                self._step_of(group, params, scalars, calls + (part << 16))
                calls += 1
        return loss

    def _step_of(self, group: dict[str, Any], params: list[Tensor], scalars: dict[str, Any], call: int) -> None:
        moments = self._moments_of(group)
        states = [self._state_of(param, group) for param in params]
        steps = [state["step"] for state in states]
        found = scalars["found_inf"]
        # A step that is skipped does not count.
        torch._foreach_add_(steps, 1 if found is None else (found == 0).float())
        if self._has_codes(params[0]):
            lists = [[state[f"{name}_codes"] for state in states] for name in moments]
            scalars |= {f"{name}_scales": [state[f"{name}_scales"] for state in states] for name in moments}
        else:
            lists = [[state[name] for state in states] for name in moments]
        scalars |= {f"{name}s": [state[name] for state in states] for name in self._maxima_of(group)}
        if not moments:
            lists = [[]] * len(self._moments)
        if self._rounds_stochastically(params[0]):
            scalars["rounding_seed"] = (self.kernel.seed & 0xFFFFFFFF) + (call << 32)
        grads = [param.grad for param in params if param.grad is not None]
        masters = [state["master"] for state in states if "master" in state]
        numbers = scalars | self._numbers(group) | {"maximize": group["maximize"]}
        self._run(params, grads, lists, steps, masters, numbers)

    def _run(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        moments: list[list[Tensor]],
        steps: list[Tensor],
        masters: list[Tensor],
        numbers: dict[str, Any],
    ) -> None:
        """The operator, on the parts in this process."""
        type(self)._operator(
            local_parts(params),
            local_parts([distributed.placed_like(grad, param) for grad, param in zip(grads, params, strict=True)]),
            *map(local_parts, moments),
            steps,
            masters=local_parts(masters),
            **{name: local_parts(value) if isinstance(value, list) else value for name, value in numbers.items()},
        )

    # ---- checkpoints ----

    def _pairs(self, state_dict: dict[str, Any]) -> Iterator[tuple[Any, Tensor, dict[str, Any]]]:
        """The keys of a checkpoint's states, our parameters, and their groups."""
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = ((param, group) for group in self.param_groups for param in group["params"])
        for key, (param, group) in zip(saved, own, strict=True):
            yield key, param, group

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch.optim's; the float32 state of half parameters keeps its digits, which torch would round, and moments
        become 8-bit codes, or stop being such, as this optimizer keeps them."""
        for group in state_dict["param_groups"]:
            refuse(type(self).__name__, group, self._refused)
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            # A checkpoint of torch's says how torch ran it, one of another optimizer's lacks what we need.
            group |= {"fused": True, "foreach": None, "maximize": group.get("maximize", False)}
        for key, param, group in self._pairs(state_dict):
            original = state_dict["state"].get(key)
            if original:
                self.state[param] = self._loaded(param, original, group)

    def _loaded(self, param: Tensor, saved: dict[str, Any], group: dict[str, Any]) -> dict[str, Tensor]:
        """A parameter's state out of a checkpoint's."""
        # torch.optim.SGD keeps no count: with a momentum buffer, the first step is over.
        default = 1.0 if saved.get("momentum_buffer") is not None else 0.0
        step = torch.as_tensor(saved.get("step", default), dtype=torch.float32)
        state = {"step": step.detach().to(param.device, copy=True).reshape(())}
        for name, signed in self._moments_of(group).items():
            codes: Any = saved.get(f"{name}_codes")
            scales: Any = saved.get(f"{name}_scales")
            values: Any = saved.get(name)
            if codes is None and values is None:
                continue
            if not self._has_codes(param):
                values = decode_moment(codes, scales, signed) if values is None else values
                state[name] = values.detach().to(param.device, self._moment_dtype(param), copy=True)
                continue
            if codes is None:
                codes, scales = encode_moment(values.detach().to(torch.float32), signed)
            state[f"{name}_codes"] = codes.detach().to(param.device, copy=True)
            state[f"{name}_scales"] = scales.detach().to(param.device, copy=True)
        for name in self._maxima_of(group):
            if name in saved:
                state[name] = saved[name].detach().to(param.device, self._moment_dtype(param), copy=True)
        if self._has_master(param) and "master" in saved:
            state["master"] = saved["master"].detach().to(param.device, torch.float32, copy=True)
        return state


def refuse(name: str, options: dict[str, Any], refused: Iterable[str] = UNSUPPORTED) -> None:
    """Raises for an option of torch's constructors that is on and not supported."""
    for option in refused:
        if options.get(option):
            raise ValueError(f"warpwright: {name}: {option} is not supported; torch.optim has it")
