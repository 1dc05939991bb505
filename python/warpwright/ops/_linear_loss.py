"""What the losses behind a linear layer share: the checks of the layer, in the words of csrc/bindings/linear_loss.cpp,
and which gradients they compute at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from warpwright._check import require, shape_text
from warpwright.ops._epilogue import check_bias, check_operands


def check_layer(op: str, input: Tensor, weight: Tensor, bias: Tensor | None, chunk_rows: int | None) -> None:
    check_operands(op, input, "weight", weight)
    classes = weight.shape[0]
    require(classes >= 1, op, f"weight must have at least 1 class, got shape {shape_text(weight.shape)}")
    check_bias(op, "bias", bias, input, classes)
    require(chunk_rows is None or chunk_rows >= 1, op, f"chunk_rows must be positive, got {chunk_rows}")


def early_needs(input: Tensor, weight: Tensor, bias: Tensor | None, reduction: str) -> list[bool]:
    """Which gradients of (input, weight, bias) the forward pass computes: those that are wanted, unless the loss has no
    single gradient to scale them by. float16's need their loss scale before they are rounded."""
    early = torch.is_grad_enabled() and reduction != "none" and input.dtype != torch.float16
    return [early and t is not None and t.requires_grad for t in (input, weight, bias)]


def grads_like(input: Tensor, weight: Tensor, needs: Sequence[Any]) -> tuple[Tensor, ...]:
    shapes = (input.shape, weight.shape, weight.shape[:1])
    return tuple(input.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))
