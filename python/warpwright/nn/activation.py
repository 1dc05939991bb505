"""Activation, softmax and dropout layers."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright import ops
from warpwright._fallbacks import count_fallback
from warpwright.nn._reasons import common_reason


class GELU(torch.nn.GELU):
    """torch.nn.GELU on warpwright.ops.gelu: same constructor and attributes.

    Runs torch's own forward, and counts it in warpwright.fallbacks(), where the op cannot take the tensor: a dtype
    other than float32, float16, bfloat16 (float64 on the CPU), sparse or nested tensors, subclasses with their own
    dispatch, torch.func transforms, devices without a kernel. So do all layers of this module.
    """

    def forward(self, input: Tensor) -> Tensor:
        reason = common_reason(input, op="activation")
        if reason is not None:
            count_fallback("GELU", reason)
            return super().forward(input)
        return ops.gelu(input, self.approximate)


class SiLU(torch.nn.SiLU):
    """torch.nn.SiLU on warpwright.ops.silu; falls back as `GELU` does, and where it is to work in place."""

    def forward(self, input: Tensor) -> Tensor:
        reason = "inplace=True" if self.inplace else common_reason(input, op="activation")
        if reason is not None:
            count_fallback("SiLU", reason)
            return super().forward(input)
        return ops.silu(input)


class ReLU(torch.nn.ReLU):
    """torch.nn.ReLU on warpwright.ops.relu; falls back as `GELU` does, and where it is to work in place."""

    def forward(self, input: Tensor) -> Tensor:
        reason = "inplace=True" if self.inplace else common_reason(input, op="activation")
        if reason is not None:
            count_fallback("ReLU", reason)
            return super().forward(input)
        return ops.relu(input)


class GLU(torch.nn.GLU):
    """torch.nn.GLU on warpwright.ops.glu; falls back as `GELU` does."""

    def forward(self, input: Tensor) -> Tensor:
        reason = common_reason(input, op="glu")
        if reason is not None:
            count_fallback("GLU", reason)
            return super().forward(input)
        return ops.glu(input, self.dim)


class Softmax(torch.nn.Softmax):
    """torch.nn.Softmax on warpwright.ops.softmax; falls back as `GELU` does, and without a dimension."""

    def forward(self, input: Tensor) -> Tensor:
        reason = "dim=None" if self.dim is None else common_reason(input, op="softmax")
        if reason is not None:
            count_fallback("Softmax", reason)
            return super().forward(input)
        assert self.dim is not None
        return ops.softmax(input, self.dim)


class LogSoftmax(torch.nn.LogSoftmax):
    """torch.nn.LogSoftmax on warpwright.ops.log_softmax; falls back as `GELU` does, and without a dimension."""

    def forward(self, input: Tensor) -> Tensor:
        reason = "dim=None" if self.dim is None else common_reason(input, op="softmax")
        if reason is not None:
            count_fallback("LogSoftmax", reason)
            return super().forward(input)
        assert self.dim is not None
        return ops.log_softmax(input, self.dim)


class Dropout(torch.nn.Dropout):
    """torch.nn.Dropout on warpwright.ops.dropout; falls back as `GELU` does, and where it is to work in place.

    A seed of each call is drawn by torch's generator, so torch.manual_seed decides the masks, which are others than
    torch's.
    """

    def forward(self, input: Tensor) -> Tensor:
        reason = "inplace=True" if self.inplace else common_reason(input, op="dropout_add")
        if reason is not None:
            count_fallback("Dropout", reason)
            return super().forward(input)
        return ops.dropout(input, self.p, self.training)
