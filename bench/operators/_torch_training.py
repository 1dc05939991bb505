"""What PyTorch has no class for, out of its own ops: master weights, and linear layers that train in 8-bit floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Masters:
    """An optimizer on float32 copies of half parameters: gradients are cast to them, and they are rounded back."""

    def __init__(self, parameters: Sequence[nn.Parameter], make: Callable[[list[Tensor]], torch.optim.Optimizer]):
        self.parameters: list[Tensor] = list(parameters)
        self.masters: list[Tensor] = [p.detach().float() for p in parameters]
        self.optimizer = make(self.masters)

    @torch.no_grad()
    def step(self) -> None:
        grads = [torch.empty_like(master) for master in self.masters]
        torch._foreach_copy_(grads, [p.grad for p in self.parameters])  # type: ignore[misc]
        for master, grad in zip(self.masters, grads, strict=True):
            master.grad = grad
        self.optimizer.step()
        for master in self.masters:
            master.grad = None
        torch._foreach_copy_(self.parameters, self.masters)


def _quantize(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each row to 8-bit floats, which lie together as the product wants them, and its scale, (m, 1)."""
    scale = rows.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / torch.finfo(dtype).max
    return (rows / scale).to(dtype).contiguous(), scale


def _product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """(m, k) times (n, k) transposed."""
    return torch._scaled_mm(a[0], b[0].t(), scale_a=a[1], scale_b=b[1].t(), out_dtype=dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        e4m3 = torch.float8_e4m3fn
        return _product(_quantize(x, e4m3), _quantize(weight, e4m3), x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
        dx = _product(_quantize(dy, e5m2), _quantize(weight.t(), e4m3), dy.dtype)
        dw = _product(_quantize(dy.t(), e5m2), _quantize(x.t(), e4m3), dy.dtype)
        return dx, dw


class _Float8Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        rows, weight = input.reshape(-1, self.in_features).to(dtype), self.weight.to(dtype)
        y = _Linear.apply(rows, weight).view(*input.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.to(dtype)


def convert_to_float8(module: nn.Module) -> None:
    """Switches all linear layers but the last, in place."""
    for name, layer in module.named_modules():
        if type(layer) is nn.Linear and not name.endswith(("head", "fc")):
            layer.__class__ = _Float8Linear
