"""What the definitions of the losses behind a linear layer share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from warpwright._check import acc_dtype, count_of


def logits_of(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(rows, classes), in the dtype of the arithmetic."""
    acc = acc_dtype(input.dtype)
    logits = input.reshape(count_of(input.shape[:-1]), input.shape[-1]).to(acc) @ weight.to(acc).t()
    return logits if bias is None else logits + bias.to(acc)


def grads_of(grad: Tensor, input: Tensor, weight: Tensor, needs: Any) -> tuple[Tensor, ...]:
    """From those of the logits, (rows, classes)."""
    rows = input.reshape(grad.shape[0], input.shape[-1]).to(grad.dtype)
    grads = (grad @ weight.to(grad.dtype)).view(input.shape), grad.t() @ rows, grad.sum(0)
    return tuple(
        g.to(input.dtype).contiguous() if need else input.new_empty(0) for g, need in zip(grads, needs, strict=True)
    )
