"""The cross entropy of a linear layer's output: a chunk of rows at a time its logits, their loss, the gradient over the
logits and the products with it. And what the losses behind a linear layer leave for the backward pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import acc_dtype, interpreted, rounded, tl_acc
from warpwright.triton_kernels._linear_loss import Grads, chunk_of, chunks
from warpwright.triton_kernels._loss import empty_loss, sum_losses, weight_row
from warpwright.triton_kernels.loss import backward_rows, forward_rows

BLOCK = 1024


@triton.jit
def _scale_kernel(x_ptr, by_ptr, out_ptr, count, ACC: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(x_ptr + at, at < count, 0.0).to(ACC) * tl.load(by_ptr).to(ACC)
    tl.store(out_ptr + at, rounded(y, out_ptr.dtype.element_ty, INTERPRETED), at < count)


def linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    chunk_rows: int | None,
    precision: str,
    batch_invariant: bool,
    float32_loss: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    settings = {"precision": precision, "batch_invariant": batch_invariant}
    chunk = chunk_of(input, weight, chunk_rows)
    options = ignore_index, label_smoothing, z_loss, softcap
    matrix, flat = input.reshape(target.numel(), input.shape[-1]), target.contiguous().view(-1)
    loss, row_loss, total = empty_loss(input, target.shape, reduction, float32_loss)
    lse = torch.empty((2, flat.numel()), dtype=acc_dtype(input.dtype), device=input.device)
    weights = weight_row(class_weight, input.dtype)
    mass = lse.new_empty(0 if weights is None else flat.numel())
    needs = needs if reduction != "none" else (False,) * 3
    grads = Grads(matrix, weight, needs, chunk, settings)
    if any(needs):
        sum_losses(None, flat, weights, loss, total, weight.shape[0], ignore_index, reduction)
    one = torch.ones((), dtype=lse.dtype, device=input.device)
    by_row, mean = row_loss.view(-1), reduction == "mean"
    for first, rows, logits in chunks(matrix, weight, bias, chunk, settings):
        of_rows = lse[:, rows], mass[rows]
        forward_rows(logits, flat[rows], weights, by_row[rows], *of_rows, *options)
        if any(needs):
            backward_rows(one, logits, flat[rows], weights, *of_rows, total if mean else None, logits, None, *options)
            grads.add(logits, first)
    if reduction != "none":
        sum_losses(by_row, flat, weights, loss, total, weight.shape[0], ignore_index, reduction)
    return loss, lse, mass, total, *grads.result(input.shape)


def linear_cross_entropy_backward(
    grad_loss: Tensor,
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    lse: Tensor,
    mass: Tensor,
    total: Tensor,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    chunk_rows: int | None,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    settings = {"precision": precision, "batch_invariant": batch_invariant}
    chunk = chunk_of(input, weight, chunk_rows)
    options = ignore_index, label_smoothing, z_loss, softcap
    matrix, flat = input.reshape(target.numel(), input.shape[-1]), target.contiguous().view(-1)
    grads = Grads(matrix, weight, needs, chunk, settings)
    by_row, none = grad_loss.contiguous().view(-1), reduction == "none"
    weights, lse, mass = weight_row(class_weight, input.dtype), lse.contiguous(), mass.contiguous()
    divisor = total if reduction == "mean" else None
    for first, rows, logits in chunks(matrix, weight, bias, chunk, settings):
        of_rows = by_row[rows] if none else grad_loss
        statistics = lse[:, rows], mass[rows], divisor
        backward_rows(of_rows, logits, flat[rows], weights, *statistics, logits, None, *options)
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
