"""Definitions of the activation family."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import acc_dtype


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    x = gate.to(acc_dtype(gate.dtype))
    return (x * torch.sigmoid(x) * up).to(gate.dtype).contiguous()


def swiglu_backward(grad_output: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    acc = acc_dtype(gate.dtype)
    dy, x = grad_output.to(acc), gate.to(acc)
    s = torch.sigmoid(x)
    grad_gate = dy * up * s * (1 + x * (1 - s))
    grad_up = dy * x * s
    return grad_gate.to(gate.dtype).contiguous(), grad_up.to(gate.dtype).contiguous()
