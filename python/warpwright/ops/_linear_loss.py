"""What the losses behind a linear layer share: how many rows' logits exist at once, and the checks of the layer, in the
words of csrc/bindings/linear_loss.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from warpwright._check import count_of, require, shape_text
from warpwright.ops._epilogue import check_bias, check_operands

#: Logits that may always exist at once, in bytes, and else how small a part of them all.
CHUNK_BYTES, CHUNK_PART = 16 * 2**20, 10


def chunk_of(input: Tensor, weight: Tensor, chunk_rows: int | None, layers: int = 1) -> int:
    """How many rows' logits exist at once, of each of so many layers."""
    rows, row_bytes = count_of(input.shape[:-1]), max(1, layers * weight.shape[0] * input.element_size())
    if chunk_rows is not None:
        return chunk_rows
    chunk = max(CHUNK_BYTES // row_bytes, rows // (layers * CHUNK_PART), 1)
    # In whole tiles of a product.
    return min(chunk // 128 * 128 if chunk >= 128 else chunk, max(rows, 1))


def check_ranks(op: str, input: Tensor, weight: Tensor) -> None:
    """What a chunk is computed from."""
    require(input.dim() >= 1, op, "input must have at least 1 dimension, got 0")
    require(weight.dim() == 2, op, f"weight must have 2 dimensions, got {weight.dim()}")


def check_layer(op: str, input: Tensor, weight: Tensor, bias: Tensor | None, chunk_rows: int) -> None:
    check_operands(op, input, "weight", weight)
    classes = weight.shape[0]
    require(classes >= 1, op, f"weight must have at least 1 class, got shape {shape_text(weight.shape)}")
    check_bias(op, "bias", bias, input, classes)
    require(chunk_rows >= 1, op, f"chunk_rows must be positive, got {chunk_rows}")


def early_needs(input: Tensor, weight: Tensor, bias: Tensor | None, reduction: str) -> list[bool]:
    """Which gradients of (input, weight, bias) the forward pass computes: those that are wanted, unless the loss has no
    single gradient to scale them by. float16's need their loss scale before they are rounded."""
    early = torch.is_grad_enabled() and reduction != "none" and input.dtype != torch.float16
    return [early and t is not None and t.requires_grad for t in (input, weight, bias)]


def grads_like(input: Tensor, weight: Tensor, needs: Sequence[Any]) -> tuple[Tensor, ...]:
    shapes = (input.shape, weight.shape, weight.shape[:1])
    return tuple(input.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))
