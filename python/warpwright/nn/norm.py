"""Norm layers."""

from __future__ import annotations

from typing import cast

import torch
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
        reason = common_reason(input, self.weight, self.bias)
        if reason is not None:
            count_fallback("LayerNorm", reason)
            return super().forward(input)
        return cast(Tensor, ops.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps))


class RMSNorm(torch.nn.RMSNorm):
    """torch.nn.RMSNorm on warpwright.ops.rms_norm: same constructor, attributes and state_dict.

    Runs torch's own forward, and counts it in warpwright.fallbacks(), where the op cannot take the tensors: a dtype
    other than float32, float16, bfloat16 (float64 on the CPU), input and weight of different dtypes outside autocast,
    sparse or nested tensors, subclasses with their own dispatch, torch.func transforms, devices without a kernel.
    """

    def forward(self, x: Tensor) -> Tensor:
        reason = common_reason(x, self.weight)
        if reason is not None:
            count_fallback("RMSNorm", reason)
            return super().forward(x)
        return cast(Tensor, ops.rms_norm(x, self.normalized_shape, self.weight, self.eps))
