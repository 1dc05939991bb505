"""Matmul kernels: one strided product with a fused epilogue serves the forward pass and both gradients."""

from __future__ import annotations

from torch import Tensor

from warpwright.triton_kernels._epilogue import epilogue_grads
from warpwright.triton_kernels._gemm import gemm


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str, save_preact: bool
) -> tuple[Tensor, Tensor]:
    sizes = (*input.shape[:-1], weight.shape[0])
    keep = save_preact and activation not in ("none", "relu")
    output, preact = gemm(
        _matrix(input), weight, bias, None if residual is None else _matrix(residual), activation, keep
    )
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
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_preact = need_input or need_weight or need_residual
    saved_rows = None if saved is None else _matrix(saved)
    grad, grad_bias = epilogue_grads(_matrix(grad_output), saved_rows, activation, need_preact, need_bias)
    grad_input = grad_weight = grad_residual = None
    if need_input:
        grad_input = gemm(grad, weight.t())[0].view(input.shape)
    if need_weight:
        grad_weight = gemm(grad.t(), _matrix(input).t())[0]
    if need_residual:
        # An output may not be an input: without an activation the gradient is copied.
        grad_residual = (grad if activation != "none" else grad.contiguous().clone()).view(grad_output.shape)
    outputs = (grad_input, grad_weight, grad_bias, grad_residual)
    return tuple(input.new_empty(0) if t is None else t for t in outputs)
