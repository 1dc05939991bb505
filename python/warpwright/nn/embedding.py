"""Embedding layers."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright import distributed, ops
from warpwright._fallbacks import count_fallback
from warpwright.nn._reasons import common_reason, kind_reason


class Embedding(torch.nn.Embedding):
    """torch.nn.Embedding on warpwright.ops.embedding: same constructor, attributes and state_dict.

    Runs torch's own forward, and counts it in warpwright.fallbacks(), for max_norm, for sparse gradients, and where the
    op cannot take the tensors: a weight of a dtype other than float32, float16, bfloat16 (float64 on the CPU), indices
    other than int64 and int32, sparse or nested tensors, subclasses with their own dispatch, torch.func transforms,
    devices without a kernel.
    """

    def forward(self, input: Tensor) -> Tensor:
        reason = self._reason(input)
        if reason is not None:
            count_fallback("Embedding", reason)
            return super().forward(input)
        return ops.embedding(input, self.weight, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)

    def _reason(self, input: object) -> str | None:
        if self.max_norm is not None:
            return "max_norm"
        if self.sparse:
            return "sparse gradients"
        if not isinstance(input, Tensor):
            return f"input is a {type(input).__name__}, not a tensor"
        if distributed.is_cut(self.weight, 0):
            return "DTensor whose rows of the table are cut"  # torch's placement knows what a process lacks.
        reason = common_reason(self.weight, op="embedding")
        if reason is not None:
            return reason
        if input.dtype not in (torch.int64, torch.int32):
            return f"{input.dtype} input"
        if input.device != self.weight.device:
            return f"input on {input.device.type}, a parameter on {self.weight.device.type}"
        return kind_reason(input, "embedding")
