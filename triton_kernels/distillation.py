"""Losses that teach one model by another, behind the output layers of both: a chunk of rows at a time their logits, and
in one kernel the loss and the gradient over the student's logits. One program a row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from warpwright.triton_kernels._common import interpreted, num_warps, rounded, row_block, tl_acc
from warpwright.triton_kernels._linear_loss import Grads, chunk_of, chunks
from warpwright.triton_kernels._loss import empty_loss, sum_losses


@triton.jit
def _normaliser(x_ptr, cols, scale, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """log(softmax(scale * x)) is scale * (x less the first) less the second: exactly 0 is left of the largest element,
    whether or not the compiler fuses the product."""
    highest = tl.full((BLOCK,), float("-inf"), ACC)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        highest = tl.maximum(highest, tl.load(x_ptr + col, col < cols, float("-inf")).to(ACC))
    top = tl.max(highest, 0)
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        total += tl.exp((tl.load(x_ptr + col, col < cols, float("-inf")).to(ACC) - top) * scale)
    return top, tl.log(tl.sum(total, 0))


@triton.jit
def _divergence_kernel(
    student_ptr, teacher_ptr, grad_loss_ptr, grad_loss_row, row_loss_ptr, cols, temperature, factor,
    LOSS: tl.constexpr, GRAD: tl.constexpr, SCALED: tl.constexpr, ACC: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    student_ptr += row * cols
    teacher_ptr += row * cols
    scale = 1.0 / temperature
    student_top, student_log_sum = _normaliser(student_ptr, cols, scale, ACC, BLOCK)
    teacher_top, teacher_log_sum = _normaliser(teacher_ptr, cols, scale, ACC, BLOCK)
    of_grad = factor * scale
    if SCALED:
        of_grad = of_grad * tl.load(grad_loss_ptr + row * grad_loss_row).to(ACC)
    sums = tl.zeros((BLOCK,), ACC)
    for start in range(0, cols, BLOCK):
        col = start + tl.arange(0, BLOCK).to(tl.int64)
        mask = col < cols
        x = tl.load(student_ptr + col, mask, 0.0).to(ACC)
        y = tl.load(teacher_ptr + col, mask, 0.0).to(ACC)
        log_q = (x - student_top) * scale - student_log_sum
        log_p = (y - teacher_top) * scale - teacher_log_sum
        probability = tl.exp(log_p)
        gap = tl.exp(log_q) - probability
        sums += tl.where(mask, probability * (log_p - log_q) + gap, 0.0)
        if GRAD:
            tl.store(student_ptr + col, rounded(of_grad * gap, student_ptr.dtype.element_ty, INTERPRETED), mask)
    if LOSS:
        tl.store(row_loss_ptr + row, rounded(tl.sum(sums, 0), row_loss_ptr.dtype.element_ty, INTERPRETED))


def _divergence(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    factor: float,
    row_loss: Tensor | None = None,
    grad: bool = True,
    grad_loss: Tensor | None = None,
) -> None:
    """Of logits in one piece; the gradient is written over the student's, the losses to `row_loss`. What is not there
    is neither computed nor read."""
    rows, cols = student.shape
    block = row_block(cols)
    if rows == 0:
        return
    _divergence_kernel[(rows,)](
        student, teacher, student if grad_loss is None else grad_loss,
        0 if grad_loss is None or grad_loss.dim() == 0 else 1, student if row_loss is None else row_loss, cols,
        temperature, factor, LOSS=row_loss is not None, GRAD=grad, SCALED=grad_loss is not None,
        ACC=tl_acc(student.dtype), INTERPRETED=interpreted(), BLOCK=block, num_warps=num_warps(block),
    )  # fmt: skip


def _matrices(input: Tensor, teacher_input: Tensor) -> tuple[Tensor, Tensor]:
    rows = input.shape[:-1].numel()
    return input.reshape(rows, input.shape[-1]), teacher_input.reshape(rows, teacher_input.shape[-1])


def _factor(rows: int, classes: int, reduction: str) -> float:
    divisor = {"batchmean": rows, "mean": rows * classes}.get(reduction, 1)
    return 1.0 / divisor if divisor else float("inf")  # Over no row a mean is NaN: nothing times infinity.


def linear_kl_div(
    input: Tensor,
    weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    bias: Tensor | None,
    teacher_bias: Tensor | None,
    temperature: float,
    reduction: str,
    chunk_rows: int | None,
    precision: str,
    batch_invariant: bool,
    float32_loss: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    settings = {"precision": precision, "batch_invariant": batch_invariant}
    chunk = chunk_of(input, weight, chunk_rows, layers=2)
    x, y = _matrices(input, teacher_input)
    factor = _factor(x.shape[0], weight.shape[0], reduction)
    loss, row_loss, total = empty_loss(input, input.shape[:-1], reduction, float32_loss)
    needs = needs if reduction != "none" else (False,) * 3
    grads, by_row = Grads(x, weight, needs, chunk, settings), row_loss.view(-1)
    of_teacher = chunks(y, teacher_weight, teacher_bias, chunk, settings)
    for (first, rows, student), (_, _, teacher) in zip(
        chunks(x, weight, bias, chunk, settings), of_teacher, strict=True
    ):
        _divergence(student, teacher, temperature, factor, by_row[rows], any(needs))
        if any(needs):
            grads.add(student, first)
    if reduction != "none":
        sum_losses(by_row, None, None, loss, total, 0, 0, "sum", factor)
    return loss, *grads.result(input.shape)


def linear_kl_div_backward(
    grad_loss: Tensor,
    input: Tensor,
    weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    bias: Tensor | None,
    teacher_bias: Tensor | None,
    temperature: float,
    reduction: str,
    chunk_rows: int | None,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    settings = {"precision": precision, "batch_invariant": batch_invariant}
    chunk = chunk_of(input, weight, chunk_rows, layers=2)
    x, y = _matrices(input, teacher_input)
    factor = _factor(x.shape[0], weight.shape[0], reduction)
    grads, by_row = Grads(x, weight, needs, chunk, settings), grad_loss.contiguous().view(-1)
    of_teacher = chunks(y, teacher_weight, teacher_bias, chunk, settings)
    for (first, rows, student), (_, _, teacher) in zip(
        chunks(x, weight, bias, chunk, settings), of_teacher, strict=True
    ):
        of_rows = by_row[rows] if reduction == "none" else grad_loss
        _divergence(student, teacher, temperature, factor, grad_loss=of_rows)
        grads.add(student, first)
    return grads.result(input.shape)
