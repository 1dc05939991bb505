"""What the optimizers' steps have in common: the order of their arguments, and the code of their 8-bit moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# ---- arguments ----


@dataclass(frozen=True)
class Rule:
    """One optimizer: the names of what its operator in csrc/schema.cpp takes beside what all of them take."""

    name: str
    moments: tuple[str, ...]
    numbers: tuple[str, ...]
    flags: tuple[str, ...]
    scales: tuple[str, ...]
    maxima: tuple[str, ...] = ()

    def step(self, args: Sequence[Any]) -> Step:
        """The operator's arguments, in the order of its schema, by name."""
        left = iter(args)
        params, grads = next(left), next(left)
        moments = [next(left) for _ in self.moments]
        masters, steps = next(left), next(left)
        numbers = {name: next(left) for name in (*self.numbers, *self.flags)}
        grad_scale, found_inf, lr_tensor, grad_multiplier = (next(left) for _ in range(4))
        scales = [next(left) for _ in self.scales]
        maxima = [next(left) for _ in self.maxima]
        return Step(
            self, params, grads, moments, masters, steps, numbers, grad_scale, found_inf, lr_tensor, grad_multiplier,
            scales, next(left), maxima[0] if maxima else [],
        )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One call of an operator."""

    rule: Rule
    params: list[Tensor]
    grads: list[Tensor]
    moments: list[list[Tensor]]
    masters: list[Tensor]
    steps: list[Tensor]
    numbers: dict[str, Any]
    grad_scale: Tensor | None
    found_inf: Tensor | None
    lr_tensor: Tensor | None
    grad_multiplier: Tensor | None
    scales: list[list[Tensor]]
    rounding_seed: int | None
    maxima: list[Tensor]  # of second moments; none unless it is an AMSGrad step

    @property
    def coded(self) -> bool:
        """Whether the moments are 8-bit codes."""
        return bool(self.scales and self.scales[0])

    @property
    def written(self) -> list[Tensor]:
        """Every tensor that the step changes."""
        lists = [self.params, *self.moments, *self.scales, self.masters, self.maxima]
        return [tensor for tensors in lists for tensor in tensors]

    def lr(self, device: torch.device) -> Tensor:
        """The learning rate in float64, on the device."""
        if self.lr_tensor is not None:
            return self.lr_tensor.to(torch.float64).reshape(())
        return torch.full((), self.numbers["lr"], dtype=torch.float64, device=device)


_MOMENTS, _MOMENT_SCALES = ("exp_avgs", "exp_avg_sqs"), ("exp_avg_scales", "exp_avg_sq_scales")
_ADAM_NUMBERS = ("lr", "beta1", "beta2", "eps", "weight_decay")

RULES = {
    rule.name: rule
    for rule in (
        Rule("adamw_", _MOMENTS, _ADAM_NUMBERS, ("maximize",), _MOMENT_SCALES, ("max_exp_avg_sqs",)),
        Rule("adam_", _MOMENTS, _ADAM_NUMBERS, ("maximize",), _MOMENT_SCALES, ("max_exp_avg_sqs",)),
        Rule("lamb_", _MOMENTS, _ADAM_NUMBERS, ("maximize",), _MOMENT_SCALES),
        Rule(
            "sgd_",
            ("momentum_buffers",),
            ("lr", "momentum", "dampening", "weight_decay"),
            ("nesterov", "maximize"),
            ("momentum_buffer_scales",),
        ),
        Rule("lion_", ("exp_avgs",), ("lr", "beta1", "beta2", "weight_decay"), ("maximize",), ("exp_avg_scales",)),
    )
}

# ---- 8-bit moments: csrc/kernels/optim.h says how the code is made ----

#: Elements that share a scale.
CODE_BLOCK = 256
#: The code of zero in a signed moment.
ZERO_CODE = 128


def code_blocks(numel: int) -> int:
    """Scales of a moment with `numel` elements."""
    return -(-numel // CODE_BLOCK)


def _in_blocks(values: Tensor) -> Tensor:
    """The elements row by row as (blocks, CODE_BLOCK), zeros at the end."""
    flat = values.reshape(-1)
    blocks = code_blocks(flat.numel())
    return torch.nn.functional.pad(flat, (0, blocks * CODE_BLOCK - flat.numel())).reshape(blocks, CODE_BLOCK)


def encode_moment(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """A moment, in float32 or float64, as 8-bit codes of its shape and one float32 scale for each block."""
    if values.is_meta:  # Without numbers there are only shapes, and a suite asks for those of thousands.
        scales = values.new_empty(code_blocks(values.numel()), dtype=torch.float32)
        return torch.empty_like(values, dtype=torch.uint8), scales
    blocks = _in_blocks(values)
    scale = blocks.abs().amax(1, keepdim=True) if blocks.numel() else blocks.new_zeros(0, 1)
    usable = (scale > 0) & scale.isfinite()
    root = torch.where(usable, (blocks.abs() / torch.where(usable, scale, 1.0)).sqrt(), 0.0)
    if signed:
        codes = ZERO_CODE + (root * 127.0).round() * torch.where(blocks < 0, -1.0, 1.0)
    else:
        codes = (root.sqrt() * 255.0).round()
        codes = torch.where(usable & (blocks > 0), codes.clamp(min=1.0), codes)
    codes = codes.to(torch.uint8).reshape(-1)[: values.numel()].reshape(values.shape)
    return codes, scale.reshape(-1).to(torch.float32)


def decode_moment(codes: Tensor, scales: Tensor, signed: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """The moment that `encode_moment` made these of, as near as the code has it."""
    blocks = _in_blocks(codes).to(dtype)
    if signed:
        root = (blocks - ZERO_CODE) / 127.0
        values = root * root.abs()
    else:
        square = (blocks / 255.0).square()
        values = square * square
    values = values * scales.to(dtype).unsqueeze(1)
    return values.reshape(-1)[: codes.numel()].reshape(codes.shape)
