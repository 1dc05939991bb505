"""Loss layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import distributed, ops
from warpwright._check import acc_dtype
from warpwright._fallbacks import count_fallback
from warpwright.nn._reasons import common_reason, kind_reason


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss on warpwright.ops.cross_entropy: same constructor, attributes and state_dict.

    Runs torch's own forward, and counts it in warpwright.fallbacks(), for targets other than int64 class indices and
    probabilities in input's dtype or float32, for weights of other dtypes, and where the op cannot take the tensors: a
    dtype other than float32, float16, bfloat16 (float64 on the CPU), sparse or nested tensors, subclasses with their
    own dispatch, torch.func transforms, devices without a kernel.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        reason = _class_reason("cross_entropy", self.weight, input, target)
        if reason is not None:
            count_fallback("CrossEntropyLoss", reason)
            return super().forward(input, target)
        return ops.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(torch.nn.NLLLoss):
    """torch.nn.NLLLoss on warpwright.ops.nll_loss: same constructor, attributes and state_dict. Falls back to torch's
    own forward as CrossEntropyLoss does."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        reason = _class_reason("nll_loss", self.weight, input, target)
        if reason is not None:
            count_fallback("NLLLoss", reason)
            return super().forward(input, target)
        return ops.nll_loss(input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """torch.nn.BCEWithLogitsLoss on warpwright.ops.binary_cross_entropy_with_logits: same constructor, attributes and
    state_dict. Falls back to torch's own forward where target or weights have another dtype than input, and where the
    op cannot take the tensors."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        reason = _element_reason(input, target, self.weight, self.pos_weight)
        if reason is not None:
            count_fallback("BCEWithLogitsLoss", reason)
            return super().forward(input, target)
        return ops.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


class KLDivLoss(torch.nn.KLDivLoss):
    """torch.nn.KLDivLoss on warpwright.ops.kl_div: same constructor and attributes. Falls back to torch's own forward
    where target has another dtype or shape than input, and where the op cannot take the tensors."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        reason = _element_reason(input, target)
        if reason is None and target.shape != input.shape:
            reason = "target of another shape"
        if reason is not None:
            count_fallback("KLDivLoss", reason)
            return super().forward(input, target)
        return ops.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class LinearCrossEntropyLoss(torch.nn.Module):
    """A linear layer and the cross entropy of its output on warpwright.ops.linear_cross_entropy, which never holds all
    logits. `linear.weight` and `linear.bias` are what torch's layer of this name (torch 2.13) calls them too; z_loss,
    softcap and chunk_rows are the op's. `class_weight` is a buffer.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        class_weight: Tensor | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        self.register_buffer("class_weight", class_weight)
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.softcap = softcap
        self.chunk_rows = chunk_rows

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return ops.linear_cross_entropy(
            input,
            self.linear.weight,
            target,
            self.linear.bias,
            class_weight=self.class_weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            chunk_rows=self.chunk_rows,
        )


class LinearKLDivLoss(torch.nn.Module):
    """A student's output layer, and how far its classes are from those of a teacher's output layer, on
    warpwright.ops.linear_kl_div, which never holds all logits of either. The student's parameters are `linear.weight`
    and `linear.bias`, as LinearCrossEntropyLoss'; the teacher's come with each call and get no gradient.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        temperature: float = 1.0,
        reduction: str = "batchmean",
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        self.temperature = temperature
        self.reduction = reduction
        self.chunk_rows = chunk_rows

    def forward(
        self, input: Tensor, teacher_input: Tensor, teacher_weight: Tensor, teacher_bias: Tensor | None = None
    ) -> Tensor:
        return ops.linear_kl_div(
            input,
            self.linear.weight,
            teacher_input,
            teacher_weight,
            self.linear.bias,
            teacher_bias,
            temperature=self.temperature,
            reduction=self.reduction,
            chunk_rows=self.chunk_rows,
        )


def _class_reason(op: str, weight: Tensor | None, input: Tensor, target: Tensor) -> str | None:
    reason = common_reason(input, op=op)
    if reason is not None:
        return reason
    if not isinstance(target, Tensor):
        return f"target is a {type(target).__name__}, not a tensor"
    if distributed.is_cut(input, 1 if input.dim() > 1 else 0):
        return "DTensor whose classes are cut"  # torch's loss_parallel has a way that gathers nothing.
    probabilities = op == "cross_entropy"
    known = (torch.int64, input.dtype, acc_dtype(input.dtype)) if probabilities else (torch.int64,)
    if target.dtype not in known:
        return f"{target.dtype} target"
    if weight is not None and weight.dtype not in (input.dtype, acc_dtype(input.dtype)):
        return f"{input.dtype} input, {weight.dtype} weight"
    return _place_reason(input, target, weight, op=op)


def _element_reason(input: Tensor, target: Tensor, *weights: Tensor | None) -> str | None:
    reason = common_reason(input)
    if reason is not None:
        return reason
    if not isinstance(target, Tensor):
        return f"target is a {type(target).__name__}, not a tensor"
    for tensor in (target, *weights):
        if tensor is not None and tensor.dtype != input.dtype:
            return f"{input.dtype} input, {tensor.dtype} target or weight"
    return _place_reason(input, target, *weights)


def _place_reason(input: Tensor, *tensors: Tensor | None, op: str | None = None) -> str | None:
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device != input.device:
            return f"input on {input.device.type}, target or weight on {tensor.device.type}"
        reason = kind_reason(tensor, op)
        if reason is not None:
            return reason
    return None
