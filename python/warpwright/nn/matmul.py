"""The linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import ops
from warpwright._fallbacks import count_fallback
from warpwright.nn._activation import apply_activation, checked_activation
from warpwright.nn._reasons import common_reason


class Linear(torch.nn.Linear):
    """torch.nn.Linear on warpwright.ops.linear: same constructor, attributes and state_dict.

    Args:
        in_features, out_features, bias, device, dtype: torch.nn.Linear's.
        activation: applied to the output by the same kernel: one of `ops.linear`'s names, or None.

    Runs torch's own forward, and counts it in warpwright.fallbacks(), where the op cannot take the tensors: a dtype
    other than float32, float16, bfloat16 (float64 on the CPU), input and weight of different dtypes outside autocast,
    sparse, nested or quantised tensors, subclasses with their own dispatch (of which DTensor is none: it has sharding
    rules, see warpwright.distributed), torch.func transforms, devices without a kernel.
    """

    activation: str | None = None  # Here too, for layers whose constructor was torch's (replace_modules).
    _warpwright_transposed = False  # The weight is (out_features, in_features), unlike that of a GPT-2's Conv1D.

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        if activation is not None:
            self.activation = checked_activation("Linear", activation)

    def forward(self, input: Tensor) -> Tensor:
        reason = common_reason(input, self.weight, self.bias, op="linear")
        if reason is not None:
            count_fallback("Linear", reason)
            return apply_activation(super().forward(input), self.activation)
        return ops.linear(input, self.weight, self.bias, activation=self.activation)

    def extra_repr(self) -> str:
        extra = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + extra
