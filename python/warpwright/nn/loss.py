"""Loss layers."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright import ops
from warpwright._fallbacks import count_fallback
from warpwright.nn._reasons import common_reason, kind_reason


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss on warpwright.ops.cross_entropy: same constructor, attributes and state_dict.

    Runs torch's own forward, and counts it in warpwright.fallbacks(), for class weights, for targets other than int64
    class indices (probabilities among them), and where the op cannot take the tensors: a dtype other than float32,
    float16, bfloat16 (float64 on the CPU), sparse or nested tensors, subclasses with their own dispatch, torch.func
    transforms, devices without a kernel.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        reason = _reason(self.weight, input, target)
        if reason is not None:
            count_fallback("CrossEntropyLoss", reason)
            return super().forward(input, target)
        return ops.cross_entropy(
            input,
            target,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


def _reason(weight: Tensor | None, input: Tensor, target: Tensor) -> str | None:
    if weight is not None:
        return "class weights"
    reason = common_reason(input)
    if reason is not None:
        return reason
    if not isinstance(target, Tensor):
        return f"target is a {type(target).__name__}, not a tensor"
    if target.is_floating_point():
        return "class probabilities as target"
    if target.dtype != torch.int64:
        return f"{target.dtype} target"
    if target.device != input.device:
        return f"input on {input.device.type}, target on {target.device.type}"
    return kind_reason(target)
