"""Gated activations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from warpwright import _registry
from warpwright._backend import call
from warpwright._check import check_float, check_like, require, shape_text

# ---- swiglu ----


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """SwiGLU, the gated activation of a transformer's MLP: `silu(gate) * up` with `silu(x) = x * sigmoid(x)`.

    Args:
        gate: at least one dimension, float32, float16, bfloat16 (float64 on the CPU), any strides.
        up: like gate. None when gate holds both, gate's half first, on its last dimension, as a projection to twice
            the width gives them; the halves are read where they lie.

    Returns:
        The product, contiguous, in gate's dtype and in the shape of (half of) gate.

    Raises:
        RuntimeError: naming the argument whose dtype, device or shape does not fit; shapes are not broadcast.

    Computed in float32 (float64 for float64) and rounded once. Differentiable in both; the backward pass recomputes the
    sigmoid, so nothing is kept but the inputs. Bitwise the same from run to run.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    if up is None:
        gate, up = _halves("swiglu", gate)
    return call("swiglu", gate, up)


def _halves(op: str, both: Tensor) -> tuple[Tensor, Tensor]:
    _check_gate(op, both)
    message = f"gate without up must have an even last dimension to split, got {shape_text(both.shape)}"
    require(both.shape[-1] % 2 == 0, op, message)
    half = both.shape[-1] // 2
    gate, up = both.split_with_sizes([half, half], -1)
    return gate, up


def _check_gate(op: str, gate: Tensor) -> None:
    check_float(op, "gate", gate)
    require(gate.dim() >= 1, op, "gate must have at least 1 dimension, got 0")


def _check_swiglu(gate: Tensor, up: Tensor) -> None:
    _check_gate("swiglu", gate)
    check_like("swiglu", "up", up, "gate", gate)


def _fake_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


def _setup_swiglu(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_swiglu(ops: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    grad_gate, grad_up = ops.swiglu_backward(grad, *ctx.saved_tensors)
    return (grad_gate if ctx.needs_input_grad[0] else None, grad_up if ctx.needs_input_grad[1] else None)


def _check_swiglu_backward(grad_output: Tensor, gate: Tensor, up: Tensor) -> None:
    op = "swiglu_backward"
    _check_gate(op, gate)
    check_like(op, "up", up, "gate", gate)
    check_like(op, "grad_output", grad_output, "gate", gate)


def _fake_swiglu_backward(grad_output: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


_registry.define(
    "swiglu",
    family="activation",
    check=_check_swiglu,
    fake=_fake_swiglu,
    setup_context=_setup_swiglu,
    backward=_backward_swiglu,
    autocast=_registry.cast_to_ambient,
)
_registry.define("swiglu_backward", family="activation", check=_check_swiglu_backward, fake=_fake_swiglu_backward)
