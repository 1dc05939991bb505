"""Matmul kernels: one strided product with a fused epilogue serves the forward pass and both gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from warpwright._check import needs_preact
from warpwright.ops._epilogue import keeps_preact
from warpwright.triton_kernels._epilogue import epilogue_grads, residual_grad
from warpwright.triton_kernels._gemm import gemm


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    sizes = (*input.shape[:-1], weight.shape[0])
    keep = save_preact and needs_preact(activation)
    output, preact = gemm(
        _matrix(input), weight, bias, None if residual is None else _matrix(residual), activation, keep,
        precision=precision, batch_invariant=batch_invariant,
    )  # fmt: skip
    return output.view(sizes), preact.view(sizes) if keep else preact


def _matrix(tensor: Tensor) -> Tensor:
    """The leading dimensions as one."""
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def linear_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    # The weight is `matmul`'s other, transposed; so is its gradient.
    grads = _grads(
        _matrix(grad_output), _matrix(input), weight.t(), saved, 1.0, 1.0, activation, 1.0, precision, batch_invariant,
        needs, transpose_other=True,
    )  # fmt: skip
    shapes = (input.shape, weight.shape, weight.shape[:1], grad_output.shape)
    return tuple(g.view(s) if need else g for g, s, need in zip(grads, shapes, needs, strict=True))


def matmul(
    input: Tensor,
    other: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    alpha: float,
    beta: float,
    activation: str,
    output_scale: float,
    out_dtype: torch.dtype | None,
    precision: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    keep = keeps_preact(input.dtype, activation, output_scale, out_dtype, save_preact)
    return gemm(
        input, other.mT, bias, residual, activation, keep, alpha=alpha, beta=beta, output_scale=output_scale,
        out_dtype=out_dtype, precision=precision, batch_invariant=batch_invariant,
    )  # fmt: skip


def matmul_backward(
    grad_output: Tensor,
    input: Tensor,
    other: Tensor,
    saved: Tensor | None,
    alpha: float,
    beta: float,
    activation: str,
    output_scale: float,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    return _grads(
        grad_output.to(input.dtype), input, other, saved, alpha, beta, activation, output_scale, precision,
        batch_invariant, needs,
    )  # fmt: skip


def _grads(
    grad_output: Tensor,
    input: Tensor,
    other: Tensor,
    saved: Tensor | None,
    alpha: float,
    beta: float,
    activation: str,
    output_scale: float,
    precision: str,
    batch_invariant: bool,
    needs: tuple[bool, ...],
    transpose_other: bool = False,
) -> tuple[Tensor, ...]:
    need_input, need_other, need_bias, need_residual = needs
    shape = grad_output.shape
    rows = _matrix(grad_output)
    saved = None if saved is None else _matrix(saved)
    need_preact = need_input or need_other
    preact_rows, grad_bias = epilogue_grads(rows, saved, activation, need_preact, need_bias, output_scale)
    grad = grad_output if preact_rows is rows else preact_rows.view(shape)
    settings = {"alpha": alpha, "precision": precision, "batch_invariant": batch_invariant}
    grad_input = grad_other = grad_residual = None
    if need_input:
        grad_input = gemm(grad, other, **settings)[0]
    if need_other:
        # The gradient of (k, n), or of the (n, k) that it is a transpose of.
        pair = (grad.mT, input.mT) if transpose_other else (input.mT, grad.mT)
        grad_other = gemm(*pair, **settings)[0]
    if need_residual:
        scale = output_scale * beta
        grad_residual = preact_rows
        if not need_preact or beta != 1:
            grad_residual = epilogue_grads(rows, saved, activation, True, False, scale)[0]
        grad_residual = residual_grad(grad_residual, rows, shape)
    outputs = (grad_input, grad_other, grad_bias if need_bias else None, grad_residual)
    return tuple(input.new_empty(0) if t is None else t for t in outputs)
