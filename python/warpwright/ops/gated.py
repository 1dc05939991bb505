"""Gated projections, and the MLPs that are made of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from warpwright import _registry
from warpwright._arithmetic import arithmetic_of
from warpwright._backend import call
from warpwright._check import (
    check_activation,
    check_like,
    check_precision,
    check_same_device,
    check_same_dtype,
    fail,
    needs_preact,
    require,
)
from warpwright.ops._epilogue import check_bias, check_operands, check_output_like, wants_grad

# ---- gated projections ----


def linear_glu(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    *,
    activation: str | None = "sigmoid",
) -> Tensor:
    """`activation(input @ gate_weight.T + gate_bias) * (input @ up_weight.T + up_bias)`: a gated linear unit.

    Args:
        input: (..., in_features), float32, float16, bfloat16 (float64 on the CPU), any strides.
        gate_weight, up_weight: (hidden, in_features), input's dtype. The two halves of one packed weight (2 * hidden,
            in_features), `weight.chunk(2)`, are read where they lie.
        gate_bias, up_bias: (hidden), input's dtype, or None.
        activation: of the gate: "sigmoid" (GLU), "relu" (ReGLU), None (bilinear), or any other of `linear`'s.

    Returns:
        (..., hidden), contiguous, in input's dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit.

    The GPU's kernels take both products in one pass over the input, and the gate in their accumulators. Accumulates in
    float32 (float64 for float64) as `linear` does. Differentiable in every tensor argument. Bitwise the same from run
    to run. Saved for the backward pass, where one is wanted: the arguments and both factors, the gate before its
    activation (after it where the derivative can be taken from that); the product is not kept.

    Source: Dauphin et al., "Language Modeling with Gated Convolutional Networks", 2017; Shazeer, "GLU Variants Improve
    Transformer", 2020.
    """
    return _glu(input, gate_weight, up_weight, gate_bias, up_bias, activation or "none")


def linear_swiglu(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
) -> Tensor:
    """`silu(input @ gate_weight.T + gate_bias) * (input @ up_weight.T + up_bias)`: `linear_glu` with silu."""
    return _glu(input, gate_weight, up_weight, gate_bias, up_bias, "silu")


def linear_geglu(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    *,
    approximate: str = "none",
) -> Tensor:
    """`gelu(input @ gate_weight.T + gate_bias) * (input @ up_weight.T + up_bias)`: `linear_glu` with gelu.

    Args:
        approximate: "none" (erf) or "tanh", as in torch.nn.functional.gelu; the others as in `linear_glu`.
    """
    if approximate not in ("none", "tanh"):
        fail("linear_geglu", f"approximate must be none or tanh, got '{approximate}'")
    activation = "gelu" if approximate == "none" else "gelu_tanh"
    return _glu(input, gate_weight, up_weight, gate_bias, up_bias, activation)


def _glu(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
) -> Tensor:
    save = wants_grad(input, gate_weight, up_weight, gate_bias, up_bias)
    arguments = (input, gate_weight, up_weight, gate_bias, up_bias, activation, *arithmetic_of(input), save)
    return call("linear_glu", *arguments)[0]


def _glu_name(activation: str) -> str:
    """The errors of linear_glu name the public function that is called for an activation."""
    return {"silu": "linear_swiglu", "gelu": "linear_geglu", "gelu_tanh": "linear_geglu"}.get(activation, "linear_glu")


def _check_projections(op: str, input: Tensor, gate_weight: Tensor, up_weight: Tensor) -> None:
    check_operands(op, input, "gate_weight", gate_weight)
    check_like(op, "up_weight", up_weight, "gate_weight", gate_weight)


def _check_glu(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save: bool,
) -> None:
    op = _glu_name(activation)
    _check_projections(op, input, gate_weight, up_weight)
    check_bias(op, "gate_bias", gate_bias, input, gate_weight.shape[0])
    check_bias(op, "up_bias", up_bias, input, gate_weight.shape[0])
    check_activation(op, activation)
    check_precision(op, precision)


def _fake_glu(
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (*input.shape[:-1], gate_weight.shape[0])
    saved = sizes if save else (0,)
    return input.new_empty(sizes), input.new_empty(saved), input.new_empty(saved)


def _setup_glu(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, gate_weight, up_weight, gate_bias, up_bias, *settings, save = inputs
    _, gate, up = output
    ctx.mark_non_differentiable(gate, up)
    ctx.settings = tuple(settings)
    # Factors that were not kept are computed again in the backward pass.
    ctx.recompute = not save
    rest = (gate, up) if save else (gate_bias, up_bias)
    ctx.save_for_backward(input, gate_weight, up_weight, *rest)


def _backward_glu(ops: Any, ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    input, gate_weight, up_weight, gate, up = ctx.saved_tensors
    if ctx.recompute:
        _, gate, up = ops.linear_glu(input, gate_weight, up_weight, gate, up, *ctx.settings, True)
    needs = ctx.needs_input_grad[:5]
    grads = ops.linear_glu_backward(grad, input, gate_weight, up_weight, gate, up, *ctx.settings, *needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), *[None] * 4)


def _check_glu_backward(
    grad_output: Tensor,
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate: Tensor,
    up: Tensor,
    activation: str,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> None:
    op = "linear_glu_backward"
    _check_projections(op, input, gate_weight, up_weight)
    check_output_like(op, "grad_output", grad_output, input, gate_weight.shape[0])
    check_same_dtype(op, "grad_output", grad_output, "input", input)
    check_like(op, "gate", gate, "grad_output", grad_output)
    check_like(op, "up", up, "grad_output", grad_output)
    check_activation(op, activation)
    check_precision(op, precision)


def _fake_glu_backward(
    grad_output: Tensor,
    input: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    gate: Tensor,
    up: Tensor,
    activation: str,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    bias = gate_weight.shape[:1]
    shapes = (input.shape, gate_weight.shape, up_weight.shape, bias, bias)
    return tuple(input.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))


_registry.define(
    "linear_glu",
    family="gated",
    check=_check_glu,
    fake=_fake_glu,
    setup_context=_setup_glu,
    backward=_backward_glu,
    autocast=_registry.cast_to_ambient,
)
_registry.define("linear_glu_backward", family="gated", check=_check_glu_backward, fake=_fake_glu_backward)


# ---- mlp ----


def mlp(
    input: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    *,
    gate_weight: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
    activation: str | None = "silu",
    residual: Tensor | None = None,
) -> Tensor:
    """A transformer's MLP: `hidden @ down_weight.T + down_bias + residual`, where hidden is
    `activation(input @ gate_weight.T + gate_bias) * (input @ up_weight.T + up_bias)`, or without a gate_weight
    `activation(input @ up_weight.T + up_bias)`.

    Args:
        input: (..., in_features), float32, float16, bfloat16 (float64 on the CPU), any strides.
        up_weight: (hidden, in_features), input's dtype.
        down_weight: (out_features, hidden), input's dtype.
        gate_weight: (hidden, in_features), input's dtype, or None for a plain MLP of two layers. Gate and up may be the
            halves of one packed weight (2 * hidden, in_features): the gradient of the input is then one product.
        up_bias, gate_bias: (hidden), input's dtype, or None.
        down_bias: (out_features), input's dtype, or None.
        activation: see `linear`.
        residual: (..., out_features), input's dtype, or None.

    Returns:
        (..., out_features), contiguous, in input's dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit.

    Accumulates as `linear` does; hidden is rounded to input's dtype. Differentiable in every tensor argument. Bitwise
    the same from run to run. Saved for the backward pass, where one is wanted: input, weights and, of `hidden` elements
    a row, the gate before its activation and what it multiplies, or without a gate one of the two sides of the
    activation. hidden itself is not kept: the pass that takes the gradients of both factors computes it again.
    """
    name = activation or "none"
    save = wants_grad(input, up_weight, down_weight, gate_weight, up_bias, down_bias, gate_bias)
    tensors = (input, up_weight, down_weight, gate_weight, up_bias, down_bias, gate_bias, residual)
    return call("mlp", *tensors, name, *arithmetic_of(input), save)[0]


def _check_layers(op: str, input: Tensor, up_weight: Tensor, down_weight: Tensor, gate_weight: Tensor | None) -> None:
    check_operands(op, input, "up_weight", up_weight)
    if gate_weight is not None:
        check_like(op, "gate_weight", gate_weight, "up_weight", up_weight)
    require(down_weight.dim() == 2, op, f"down_weight must have 2 dimensions, got {down_weight.dim()}")
    check_same_device(op, "down_weight", down_weight, "input", input)
    check_same_dtype(op, "down_weight", down_weight, "input", input)
    features, hidden = down_weight.shape[1], up_weight.shape[0]
    message = f"down_weight has {features} input features, up_weight has {hidden} output features"
    require(features == hidden, op, message)


def _check_mlp(
    input: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    gate_weight: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    gate_bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save: bool,
) -> None:
    op = "mlp"
    _check_layers(op, input, up_weight, down_weight, gate_weight)
    check_bias(op, "up_bias", up_bias, input, up_weight.shape[0])
    check_bias(op, "down_bias", down_bias, input, down_weight.shape[0])
    require(gate_weight is not None or gate_bias is None, op, "gate_bias must come with a gate_weight")
    check_bias(op, "gate_bias", gate_bias, input, up_weight.shape[0])
    if residual is not None:
        check_output_like(op, "residual", residual, input, down_weight.shape[0])
        check_same_dtype(op, "residual", residual, "input", input)
    check_activation(op, activation)
    check_precision(op, precision)


def _fake_mlp(
    input: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    gate_weight: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    gate_bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    hidden = (*input.shape[:-1], up_weight.shape[0])
    gate, up = hidden if save and gate_weight is not None else (0,), hidden if save else (0,)
    return input.new_empty((*input.shape[:-1], down_weight.shape[0])), input.new_empty(gate), input.new_empty(up)


def _setup_mlp(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, up_weight, down_weight, gate_weight, up_bias, _, gate_bias, _, *settings, save = inputs
    _, gate, up = output
    ctx.mark_non_differentiable(gate, up)
    ctx.settings = tuple(settings)
    ctx.recompute = not save
    rest = (gate if gate_weight is not None else None, up) if save else (gate_bias, up_bias)
    ctx.save_for_backward(input, up_weight, down_weight, gate_weight, *rest)


def _backward_mlp(ops: Any, ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    input, up_weight, down_weight, gate_weight, gate, up = ctx.saved_tensors
    activation, *arithmetic = ctx.settings
    *needs, need_residual = ctx.needs_input_grad[:8]
    of_residual = grad if need_residual else None
    if not any(needs):
        return (*[None] * 7, of_residual, *[None] * 4)
    if ctx.recompute and gate_weight is not None:
        _, gate, up = ops.linear_glu(input, gate_weight, up_weight, gate, up, *ctx.settings, True)
    elif ctx.recompute:
        # Before the activation where its gradient is taken from there, else after it.
        wanted = "none" if needs_preact(activation) else activation
        gate, (up, _) = None, ops.linear(input, up_weight, up, None, wanted, *arithmetic, False)
    grads = ops.mlp_backward(grad, input, up_weight, down_weight, gate_weight, gate, up, *ctx.settings, *needs)
    found = (g if need else None for g, need in zip(grads, needs, strict=True))
    return (*found, of_residual, *[None] * 4)


def _check_mlp_backward(
    grad_output: Tensor,
    input: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    gate_weight: Tensor | None,
    gate: Tensor | None,
    up: Tensor,
    activation: str,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> None:
    op = "mlp_backward"
    _check_layers(op, input, up_weight, down_weight, gate_weight)
    check_output_like(op, "grad_output", grad_output, input, down_weight.shape[0])
    check_same_dtype(op, "grad_output", grad_output, "input", input)
    check_output_like(op, "up", up, input, up_weight.shape[0])
    check_same_dtype(op, "up", up, "input", input)
    paired = (gate is None) == (gate_weight is None)
    require(paired, op, "gate must be given with a gate_weight and only then")
    if gate is not None:
        check_like(op, "gate", gate, "up", up)
    check_activation(op, activation)
    check_precision(op, precision)


def _fake_mlp_backward(
    grad_output: Tensor,
    input: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    gate_weight: Tensor | None,
    gate: Tensor | None,
    up: Tensor,
    activation: str,
    precision: str,
    batch_invariant: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    hidden, features = up_weight.shape[:1], down_weight.shape[:1]
    # The gate's weight is like that of up.
    shapes = (input.shape, up_weight.shape, down_weight.shape, up_weight.shape, hidden, features, hidden)
    return tuple(input.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))


_registry.define(
    "mlp",
    family="gated",
    check=_check_mlp,
    fake=_fake_mlp,
    setup_context=_setup_mlp,
    backward=_backward_mlp,
    autocast=_registry.cast_to_ambient,
)
_registry.define("mlp_backward", family="gated", check=_check_mlp_backward, fake=_fake_mlp_backward)
