"""Norm layers."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from warpwright import ops
from warpwright._fallbacks import count_fallback
from warpwright.nn._reasons import common_reason


class LayerNorm(torch.nn.LayerNorm):
    """torch.nn.LayerNorm on warpwright.ops.layer_norm: same constructor, attributes and state_dict.

    Runs torch's own forward, and counts it in warpwright.fallbacks(), where the op cannot take the tensors: a dtype
    other than float32, float16, bfloat16 (float64 on the CPU), input and weight of different dtypes outside autocast,
    sparse or nested tensors, subclasses with their own dispatch, torch.func transforms, devices without a kernel.
    """

    def forward(self, input: Tensor) -> Tensor:
        reason = common_reason(input, self.weight, self.bias, op="layer_norm")
        if reason is not None:
            count_fallback("LayerNorm", reason)
            return super().forward(input)
        return cast(Tensor, ops.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps))


class RMSNorm(torch.nn.RMSNorm):
    """torch.nn.RMSNorm on warpwright.ops.rms_norm: same constructor, attributes and state_dict.

    `weight_offset` is added to the weight, which then starts at 1 - weight_offset: 1 for checkpoints of Gemma.

    Runs torch's own forward, and counts it in warpwright.fallbacks(), where the op cannot take the tensors: a dtype
    other than float32, float16, bfloat16 (float64 on the CPU), input and weight of different dtypes outside autocast,
    sparse or nested tensors, subclasses with their own dispatch, torch.func transforms, devices without a kernel.
    """

    weight_offset: float = 0.0  # Of the class: a layer without one has torch's attributes alone.

    def __init__(self, *args: Any, weight_offset: float = 0.0, **kwargs: Any) -> None:
        if weight_offset != 0:  # Before torch's constructor, which calls reset_parameters.
            self.weight_offset = weight_offset
        super().__init__(*args, **kwargs)
        if weight_offset != 0 and self.weight is None:
            raise ValueError("warpwright.nn.RMSNorm: weight_offset needs elementwise_affine")

    def reset_parameters(self) -> None:
        if self.elementwise_affine:
            torch.nn.init.constant_(self.weight, 1 - self.weight_offset)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", weight_offset={self.weight_offset}" if self.weight_offset != 0 else "")

    def forward(self, x: Tensor) -> Tensor:
        reason = common_reason(x, self.weight, op="rms_norm")
        if reason is not None:
            count_fallback("RMSNorm", reason)
            if self.weight_offset == 0:
                return super().forward(x)
            return F.rms_norm(x, self.normalized_shape, self.weight + self.weight_offset, self.eps)
        shape, eps, offset = self.op_arguments()
        return cast(Tensor, ops.rms_norm(x, shape, self.weight, eps, weight_offset=offset))

    def op_arguments(self) -> tuple[tuple[int, ...], float | None, float]:
        """normalized_shape, eps and weight_offset of ops.rms_norm."""
        return self.normalized_shape, self.eps, self.weight_offset
