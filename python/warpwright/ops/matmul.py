"""Matrix products with a fused epilogue."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import (
    check_activation,
    check_float,
    check_like,
    check_same_device,
    check_same_dtype,
    require,
    shape_text,
)


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`activation(input @ weight.T + bias + residual)`.

    Args:
        input: (..., in_features), float32, float16, bfloat16 (float64 on the CPU), any strides.
        weight: (out_features, in_features), input's dtype.
        bias: (out_features), input's dtype, or None.
        activation: None (or "none"), "relu", "gelu", "gelu_tanh" or "silu".
        residual: (..., out_features), input's dtype, added before the activation.

    Returns:
        (..., out_features), contiguous, in input's dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit.

    Accumulates in float32 (float64 for float64). Differentiable in every tensor argument; the gradients of the
    activation and of the bias are taken in one pass. Bitwise the same from run to run. Where a gradient is wanted and
    the activation's derivative needs the pre-activation (all but relu), that is saved from the same pass.
    """
    name = activation or "none"
    save_preact = needs_preact(name) and wants_grad(input, weight, bias, residual)
    return call("linear", input, weight, bias, residual, name, save_preact)[0]


def needs_preact(activation: str) -> bool:
    """Whether the gradient is taken from the pre-activation; relu's is taken from the output."""
    return activation not in ("none", "relu")


def wants_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _check_operands(op: str, input: Tensor, weight: Tensor) -> None:
    check_float(op, "input", input)
    require(input.dim() >= 1, op, "input must have at least 1 dimension, got 0")
    require(weight.dim() == 2, op, f"weight must have 2 dimensions, got {weight.dim()}")
    check_same_device(op, "weight", weight, "input", input)
    check_same_dtype(op, "weight", weight, "input", input)
    message = f"weight has {weight.shape[1]} input features, input has {input.shape[-1]}"
    require(weight.shape[1] == input.shape[-1], op, message)


def _check_output_like(op: str, name: str, tensor: Tensor, input: Tensor, weight: Tensor) -> None:
    check_same_device(op, name, tensor, "input", input)
    check_same_dtype(op, name, tensor, "input", input)
    expected = (*input.shape[:-1], weight.shape[0])
    message = f"{name} must have the shape of the output {shape_text(expected)}, got {shape_text(tensor.shape)}"
    require(tuple(tensor.shape) == expected, op, message)


def _check_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str, save_preact: bool
) -> None:
    op = "linear"
    _check_operands(op, input, weight)
    check_activation(op, activation)
    if bias is not None:
        check_same_device(op, "bias", bias, "input", input)
        check_same_dtype(op, "bias", bias, "input", input)
        features = weight.shape[0]
        message = f"bias must have shape {shape_text((features,))}, got {shape_text(bias.shape)}"
        require(tuple(bias.shape) == (features,), op, message)
    if residual is not None:
        _check_output_like(op, "residual", residual, input, weight)


def _fake_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str, save_preact: bool
) -> tuple[Tensor, Tensor]:
    sizes = (*input.shape[:-1], weight.shape[0])
    return input.new_empty(sizes), input.new_empty(sizes if save_preact and needs_preact(activation) else (0,))


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, bias, residual, activation, save_preact = inputs
    result, preact = output
    ctx.mark_non_differentiable(preact)
    ctx.activation = activation
    saved = result if activation == "relu" else preact if save_preact and needs_preact(activation) else None
    # Without a saved pre-activation it is computed again in the backward pass, from the forward's own arguments.
    ctx.recompute = needs_preact(activation) and saved is None
    ctx.save_for_backward(input, weight, saved, *((bias, residual) if ctx.recompute else ()))


def _backward_linear(ops: Any, ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    input, weight, saved, *rest = ctx.saved_tensors
    if ctx.recompute:
        bias, residual = rest
        saved, _ = ops.linear(input, weight, bias, residual, "none", False)
    need_input, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
    grads = ops.linear_backward(
        grad, input, weight, saved, ctx.activation, need_input, need_weight, need_bias, need_residual
    )
    return (*(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)), None, None)


def _check_linear_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    activation: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
) -> None:
    op = "linear_backward"
    _check_operands(op, input, weight)
    check_activation(op, activation)
    _check_output_like(op, "grad_output", grad_output, input, weight)
    check_saved(op, saved, activation, grad_output)


def check_saved(op: str, saved: Tensor | None, activation: str, grad_output: Tensor) -> None:
    """`saved` goes with an activation, and is like the gradient."""
    require((saved is not None) == (activation != "none"), op, "saved must be given with an activation and only then")
    if saved is not None:
        check_like(op, "saved", saved, "grad_output", grad_output)


def _fake_linear_backward(
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
    return (
        input.new_empty(input.shape if need_input else (0,)),
        weight.new_empty(weight.shape if need_weight else (0,)),
        weight.new_empty(weight.shape[:1] if need_bias else (0,)),
        grad_output.new_empty(grad_output.shape if need_residual else (0,)),
    )


_registry.define(
    "linear",
    family="matmul",
    check=_check_linear,
    fake=_fake_linear,
    setup_context=_setup_linear,
    backward=_backward_linear,
    autocast=_registry.cast_to_ambient,
)
_registry.define("linear_backward", family="matmul", check=_check_linear_backward, fake=_fake_linear_backward)
