"""Convolution layers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from warpwright import ops
from warpwright._fallbacks import count_fallback
from warpwright.nn._activation import apply_activation, checked_activation
from warpwright.nn._reasons import common_reason

_Pair = int | tuple[int, int]


class Conv2d(torch.nn.Conv2d):
    """torch.nn.Conv2d on warpwright.ops.conv2d: same constructor, attributes and state_dict.

    Args:
        in_channels, ..., dtype: torch.nn.Conv2d's.
        activation: applied to the output by the same kernel: one of `ops.linear`'s names, or None.

    Runs torch's own forward, and counts it in warpwright.fallbacks(), for a padding_mode other than "zeros", and
    where the op cannot take the tensors: a dtype other than float32, float16, bfloat16 (float64 on the CPU), input and
    weight of different dtypes outside autocast, sparse, nested or quantised tensors, subclasses with their own
    dispatch, torch.func transforms, devices without a kernel.
    """

    activation: str | None = None  # Here too, for layers whose constructor was torch's (replace_modules).

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Pair,
        stride: _Pair = 1,
        padding: str | _Pair = 0,
        dilation: _Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        if activation is not None:
            self.activation = checked_activation("Conv2d", activation)

    def forward(self, input: Tensor) -> Tensor:
        zeros = self.padding_mode == "zeros"
        reason = common_reason(input, self.weight, self.bias) if zeros else f"padding_mode={self.padding_mode!r}"
        if reason is not None:
            count_fallback("Conv2d", reason)
            return apply_activation(super().forward(input), self.activation)
        return ops.conv2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        extra = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + extra
