"""Losses behind a linear layer: a chunk of rows at a time its logits, their loss, the gradient over the logits and the
products with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import acc_dtype, interpreted, rounded, tl_acc
from warpwright.triton_kernels._gemm import gemm
from warpwright.triton_kernels._loss import empty_loss, sum_losses
from warpwright.triton_kernels.loss import backward_rows, forward_rows

BLOCK = 1024


@triton.jit
def _scale_kernel(x_ptr, by_ptr, out_ptr, count, ACC: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(x_ptr + at, at < count, 0.0).to(ACC) * tl.load(by_ptr).to(ACC)
    tl.store(out_ptr + at, rounded(y, out_ptr.dtype.element_ty, INTERPRETED), at < count)


class _Grads:
    """The gradients of the layer's operands, from those of its output a chunk at a time; sums over several chunks in
    float32, rounded once."""

    def __init__(self, input: Tensor, weight: Tensor, needs: Any, chunk: int, settings: dict[str, Any]):
        self.input, self.weight, self.needs, self.settings = input, weight, needs, settings
        whole = chunk >= input.shape[0]
        self.sum_dtype = input.dtype if whole else acc_dtype(input.dtype)
        self.of_input = torch.empty_like(input, memory_format=torch.contiguous_format) if needs[0] else None
        self.of_weight = self.of_bias = None

    def add(self, grad: Tensor, first: int) -> None:
        need_input, need_weight, need_bias = self.needs
        rows = slice(first, first + grad.shape[0])
        if self.of_input is not None and need_input:
            self.of_input[rows] = gemm(grad, self.weight.t(), **self.settings)[0]
        if need_weight:
            part = gemm(grad.t(), self.input[rows].t(), out_dtype=self.sum_dtype, **self.settings)[0]
            self.of_weight = part if self.of_weight is None else self.of_weight.add_(part)
        if need_bias:
            part = grad.sum(0, dtype=acc_dtype(grad.dtype))
            self.of_bias = part if self.of_bias is None else self.of_bias.add_(part)

    def result(self, shape: torch.Size) -> tuple[Tensor, ...]:
        dtype, weight = self.input.dtype, self.weight
        of_input = None if self.of_input is None else self.of_input.view(shape)
        of_weight = weight.new_zeros(weight.shape) if self.of_weight is None and self.needs[1] else self.of_weight
        of_bias = weight.new_zeros(weight.shape[:1]) if self.of_bias is None and self.needs[2] else self.of_bias
        grads = of_input, of_weight, of_bias
        return tuple(self.input.new_empty(0) if g is None else g.to(dtype) for g in grads)


def _chunks(
    input: Tensor, weight: Tensor, bias: Tensor | None, chunk: int, settings: dict[str, Any]
) -> Iterator[tuple[int, slice, Tensor]]:
    """(first row, rows, their logits)."""
    for first in range(0, input.shape[0], chunk):
        rows = slice(first, min(first + chunk, input.shape[0]))
        yield first, rows, gemm(input[rows], weight, bias, **settings)[0]


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    chunk_rows: int,
    precision: str,
    batch_invariant: bool,
    float32_loss: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    settings = {"precision": precision, "batch_invariant": batch_invariant}
    options = ignore_index, label_smoothing, z_loss, softcap
    matrix, flat = input.reshape(target.numel(), input.shape[-1]), target.contiguous().view(-1)
    loss, row_loss, total = empty_loss(input, target.shape, reduction, float32_loss)
    lse = torch.empty((2, flat.numel()), dtype=acc_dtype(input.dtype), device=input.device)
    needs = needs if reduction != "none" else (False,) * 3
    grads = _Grads(matrix, weight, needs, chunk_rows, settings)
    if any(needs):
        sum_losses(None, flat, None, loss, total, weight.shape[0], ignore_index, reduction)
    one = torch.ones((), dtype=lse.dtype, device=input.device)
    by_row, mean = row_loss.view(-1), reduction == "mean"
    for first, rows, logits in _chunks(matrix, weight, bias, chunk_rows, settings):
        forward_rows(logits, flat[rows], None, by_row[rows], lse[:, rows], lse, *options)
        if any(needs):
            backward_rows(one, logits, flat[rows], None, lse[:, rows], lse, total if mean else None, logits, None,
                          *options)  # fmt: skip
            grads.add(logits, first)
    if reduction != "none":
        sum_losses(by_row, flat, None, loss, total, weight.shape[0], ignore_index, reduction)
    return loss, lse, total, *grads.result(input.shape)


def linear_cross_entropy_backward(
    grad_loss: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    total: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    chunk_rows: int,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    settings = {"precision": precision, "batch_invariant": batch_invariant}
    options = ignore_index, label_smoothing, z_loss, softcap
    matrix, flat = input.reshape(target.numel(), input.shape[-1]), target.contiguous().view(-1)
    grads = _Grads(matrix, weight, needs, chunk_rows, settings)
    by_row, lse, none = grad_loss.contiguous().view(-1), lse.contiguous(), reduction == "none"
    divisor = total if reduction == "mean" else None
    for first, rows, logits in _chunks(matrix, weight, bias, chunk_rows, settings):
        of_rows = by_row[rows] if none else grad_loss
        backward_rows(of_rows, logits, flat[rows], None, lse[:, rows], lse, divisor, logits, None, *options)
        grads.add(logits, first)
    return grads.result(input.shape)


def linear_loss_backward(grad_loss: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
    outputs = []
    for grad in grads:
        source, output = grad.contiguous(), torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
        outputs.append(output)
        if grad.numel() > 0:
            _scale_kernel[(triton.cdiv(grad.numel(), BLOCK),)](
                source, grad_loss, output, grad.numel(), ACC=tl_acc(grad.dtype), INTERPRETED=interpreted(), BLOCK=BLOCK,
            )  # fmt: skip
    return tuple(outputs)
