"""Activations, gated or not, with their biases."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import (
    check_activation,
    check_float,
    check_like,
    check_same_device,
    check_same_dtype,
    fail,
    require,
    shape_text,
)

# ---- gelu, silu, relu, relu_squared ----


def gelu(input: Tensor, approximate: str = "none", *, bias: Tensor | None = None) -> Tensor:
    """GELU of `x = input + bias`: x times the normal distribution's share below x.

    Args:
        input: any shape, float32, float16, bfloat16 (float64 on the CPU), any strides.
        approximate: "none" (erf) or "tanh", as in torch.nn.functional.gelu.
        bias: (n) for input (..., n), input's dtype, or None.

    Returns:
        Like input, contiguous.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit, or an unknown `approximate`.

    Computed in float32 (float64 for float64) and rounded once, the bias added in it. Differentiable in both; the
    backward pass keeps the inputs and recomputes the rest. Bitwise the same from run to run.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
    """
    return call("activation", input, bias, _gelu_name("gelu", approximate))


def silu(input: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """SiLU, or swish, of `x = input + bias`: `x * sigmoid(x)`. Arguments, result and errors are those of `gelu`."""
    return call("activation", input, bias, "silu")


def relu(input: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """`max(input + bias, 0)`; NaN stays NaN. Arguments, result and errors are those of `gelu`."""
    return call("activation", input, bias, "relu")


def relu_squared(input: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """`max(input + bias, 0) ** 2`. Arguments, result and errors are those of `gelu`.

    Source: So et al., "Primer: Searching for Efficient Transformers for Language Modeling", 2021.
    """
    return call("activation", input, bias, "relu_squared")


def _gelu_name(op: str, approximate: str) -> str:
    if approximate not in ("none", "tanh"):
        fail(op, f"approximate must be none or tanh, got '{approximate}'")
    return "gelu" if approximate == "none" else "gelu_tanh"


# ---- swiglu, geglu, reglu, glu ----


def swiglu(
    gate: Tensor, up: Tensor | None = None, *, gate_bias: Tensor | None = None, up_bias: Tensor | None = None
) -> Tensor:
    """SwiGLU, the gated activation of a transformer's MLP: `silu(gate + gate_bias) * (up + up_bias)`.

    Args:
        gate: at least one dimension, float32, float16, bfloat16 (float64 on the CPU), any strides.
        up: like gate. None when gate holds both, gate's half first, on its last dimension, as a projection to twice
            the width gives them; the halves are read where they lie.
        gate_bias, up_bias: (n) for a gate of (..., n) (its half, where it holds both), gate's dtype, or None.

    Returns:
        The product, contiguous, in gate's dtype and in the shape of (half of) gate.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit; shapes are not broadcast.

    Computed in float32 (float64 for float64) and rounded once. Differentiable in every tensor; the backward pass
    recomputes the activation, so nothing is kept but the inputs. Bitwise the same from run to run.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    return _gated("swiglu", gate, up, gate_bias, up_bias, "silu")


def geglu(
    gate: Tensor,
    up: Tensor | None = None,
    *,
    approximate: str = "none",
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
) -> Tensor:
    """GeGLU: `gelu(gate + gate_bias) * (up + up_bias)`.

    Args:
        approximate: "none" (erf) or "tanh", as in torch.nn.functional.gelu; the others as in `swiglu`.
    """
    return _gated("geglu", gate, up, gate_bias, up_bias, _gelu_name("geglu", approximate))


def reglu(
    gate: Tensor, up: Tensor | None = None, *, gate_bias: Tensor | None = None, up_bias: Tensor | None = None
) -> Tensor:
    """ReGLU: `relu(gate + gate_bias) * (up + up_bias)`. Arguments, result and errors are those of `swiglu`."""
    return _gated("reglu", gate, up, gate_bias, up_bias, "relu")


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """GLU as torch.nn.functional.glu: the first half of `input` times the sigmoid of its second half, along `dim`.

    Args:
        input: float32, float16, bfloat16 (float64 on the CPU), any strides, an even size along dim. The halves are
            read where they lie.
        dim: the dimension that is halved.

    Returns:
        Half of input's shape, contiguous, in input's dtype.

    Raises:
        RuntimeError: naming the argument whose dtype or shape does not fit.

    Computed in float32 (float64 for float64) and rounded once. Differentiable; bitwise the same from run to run.

    Source: Dauphin et al., "Language Modeling with Gated Convolutional Networks", 2017.
    """
    up, gate = _halves("glu", "input", input, dim)
    return call("glu", gate, up, None, None, "sigmoid")


def _gated(
    op: str, gate: Tensor, up: Tensor | None, gate_bias: Tensor | None, up_bias: Tensor | None, activation: str
) -> Tensor:
    if up is None:
        gate, up = _halves(op, "gate without up", gate, -1)
    return call("glu", gate, up, gate_bias, up_bias, activation)


def _halves(op: str, name: str, both: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    first = name.split()[0]
    check_float(op, first, both)
    require(both.dim() >= 1, op, f"{first} must have at least 1 dimension, got 0")
    message = f"dim must be between {-both.dim()} and {both.dim() - 1} for {first} {shape_text(both.shape)}, got {dim}"
    require(-both.dim() <= dim < both.dim(), op, message)
    which = "last dimension" if dim == -1 else f"dimension {dim}"
    require(both.shape[dim] % 2 == 0, op, f"{name} must have an even {which} to split, got {shape_text(both.shape)}")
    half = both.shape[dim] // 2
    one, other = both.split_with_sizes([half, half], dim)
    return one, other


# ---- argument checks, in the words of csrc/bindings/activation.cpp ----


def _activation_name(activation: str) -> str:
    """Errors name the public function that is called for an activation."""
    if activation == "gelu_tanh":
        return "gelu"
    return activation if activation in ("gelu", "silu", "relu", "relu_squared") else "activation"


def _glu_name(activation: str) -> str:
    return {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu", "relu": "reglu"}.get(activation, "glu")


def _check_form(op: str, activation: str) -> None:
    if activation != "relu_squared":
        check_activation(op, activation)


def _check_bias(op: str, name: str, bias: Tensor | None, like_name: str, like: Tensor) -> None:
    if bias is None:
        return
    check_same_device(op, name, bias, like_name, like)
    check_same_dtype(op, name, bias, like_name, like)
    shapes = f"{name} must have shape (n,) for {like_name} (..., n), got {shape_text(bias.shape)}"
    fits = like.dim() >= 1 and bias.shape == like.shape[-1:]
    require(fits, op, f"{shapes} for {shape_text(like.shape)}")


def _check_activation(op: str, input: Tensor, bias: Tensor | None, activation: str) -> None:
    check_float(op, "input", input)
    _check_bias(op, "bias", bias, "input", input)
    _check_form(op, activation)


def _check_activation_backward(
    grad_output: Tensor, input: Tensor, bias: Tensor | None, activation: str, need_input: bool, need_bias: bool
) -> None:
    op = f"{_activation_name(activation)}_backward"
    _check_activation(op, input, bias, activation)
    check_like(op, "grad_output", grad_output, "input", input)
    require(bias is not None or not need_bias, op, "there is no bias to have a gradient")


def _check_glu(
    op: str, gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None, activation: str
) -> None:
    check_float(op, "gate", gate)
    require(gate.dim() >= 1, op, "gate must have at least 1 dimension, got 0")
    check_like(op, "up", up, "gate", gate)
    _check_bias(op, "gate_bias", gate_bias, "gate", gate)
    _check_bias(op, "up_bias", up_bias, "gate", gate)
    _check_form(op, activation)


def _check_glu_backward(
    grad_output: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    *needs: bool,
) -> None:
    op = f"{_glu_name(activation)}_backward"
    _check_glu(op, gate, up, gate_bias, up_bias, activation)
    check_like(op, "grad_output", grad_output, "gate", gate)


# ---- autograd ----


def _setup_activation(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, bias, ctx.activation = inputs
    ctx.save_for_backward(input, bias)


def _backward_activation(ops: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    need = ctx.needs_input_grad[:2]
    grads = ops.activation_backward(grad, *ctx.saved_tensors, ctx.activation, *need)
    return (*(g if needed else None for g, needed in zip(grads, need, strict=True)), None)


def _setup_glu(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _backward_glu(ops: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    need = ctx.needs_input_grad[:4]
    grads = ops.glu_backward(grad, *ctx.saved_tensors, ctx.activation, *need)
    return (*(g if needed else None for g, needed in zip(grads, need, strict=True)), None)


# ---- definitions ----


def _fake(input: Tensor, *_: Any) -> Tensor:
    return input.new_empty(input.shape)


def _fake_grads(like: Tensor, wide: tuple[bool, ...], sums: tuple[bool, ...]) -> tuple[Tensor, ...]:
    """Of tensors like `like`, then of biases; those that are not needed have no elements."""
    grads = [like.new_empty(like.shape if needed else (0,)) for needed in wide]
    return (*grads, *(like.new_empty(like.shape[-1:] if needed else (0,)) for needed in sums))


_registry.define(
    "activation",
    family="activation",
    check=lambda input, bias, activation: _check_activation(_activation_name(activation), input, bias, activation),
    fake=_fake,
    setup_context=_setup_activation,
    backward=_backward_activation,
    autocast=_registry.cast_to_ambient,
)
_registry.define(
    "activation_backward",
    family="activation",
    check=_check_activation_backward,
    fake=lambda grad, input, bias, activation, need_input, need_bias: _fake_grads(input, (need_input,), (need_bias,)),
)
_registry.define(
    "glu",
    family="activation",
    check=lambda gate, up, gate_bias, up_bias, activation: _check_glu(
        _glu_name(activation), gate, up, gate_bias, up_bias, activation
    ),
    fake=_fake,
    setup_context=_setup_glu,
    backward=_backward_glu,
    autocast=_registry.cast_to_ambient,
)
_registry.define(
    "glu_backward",
    family="activation",
    check=_check_glu_backward,
    fake=lambda grad, gate, up, gate_bias, up_bias, activation, *needs: _fake_grads(gate, needs[:2], needs[2:]),
)
