"""Causal depthwise convolutions along a sequence, as in Mamba, and their steps while decoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._backend import call, resolve
from warpwright._channels import empty_like
from warpwright._check import check_float, check_like, check_same_device, check_same_dtype, require, shape_text

#: csrc/kernels/causal_conv.h's.
MAX_WIDTH = 32


def causal_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`activation(bias + conv1d(input))` of each channel alone, where an output sees its own and earlier inputs.

    Args:
        input: (batch, channels, length), float32, float16, bfloat16 (float64 on the CPU), any strides; contiguous, or
            with neighbouring channels, as a (batch, length, channels) tensor transposed has them, it is read best.
        weight: (channels, width), input's dtype, width 1 to 32. The last tap meets the output's own input.
        bias: (channels), input's dtype, or None.
        activation: "silu" or None.
        initial_state: (batch, channels, width - 1), input's dtype: what came before the first input, or None for zeros.
        return_final_state: also returns the state for the inputs that follow.

    Returns:
        The output, (batch, channels, length), laid out as input is; with return_final_state (output, final_state),
        where final_state (batch, channels, width - 1) holds the last of initial_state and input.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank, shape or value does not fit.

    Accumulates in float32 (float64 for float64) and rounds once. Differentiable in input, weight, bias and
    initial_state, also through final_state; the backward pass computes the pre-activation again. Bitwise the same from
    run to run. The parts of a sequence, each with the state before it, give the bits of the whole in C++.

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, section 3.4.
    """
    output, final_state = call(
        "causal_conv1d", input, weight, bias, initial_state, activation or "none", return_final_state
    )
    return (output, final_state) if return_final_state else output


def causal_conv1d_update_(
    state: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    state_indices: Tensor | None = None,
) -> Tensor:
    """causal_conv1d of the next inputs of sequences whose state is kept, and replaced in place.

    Args:
        state: (batch, channels, width - 1), input's dtype, any strides that do not make it overlap itself: the last
            inputs of each sequence. Updated. With state_indices (slots, channels, width - 1).
        input: (batch, channels), or (batch, channels, steps) for a few steps at once.
        weight, bias, activation: as causal_conv1d's.
        state_indices: (batch), int32 or int64: the row of state that each sequence has, no row twice; None for the
            first batch rows in order. A negative index is padding: its output is 0, and no state is touched; nor is it
            for an index past the last row, whose output is NaN.

    Returns:
        The output, shaped and laid out as input.

    Raises:
        RuntimeError: naming the argument that does not fit, or that a gradient is wanted of: there is none.

    Computed as causal_conv1d; one launch, which allocates nothing but the output, so that CUDA graphs can hold it.
    """
    op = "causal_conv1d_update_"
    for name, tensor in (("state", state), ("input", input), ("weight", weight), ("bias", bias)):
        wanted = torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        require(not wanted, op, f"{name} has no gradient, got one that requires grad: causal_conv1d is differentiable")
    steps = input.unsqueeze(-1) if input.dim() == 2 else input
    with torch.no_grad():
        output: Tensor = resolve(op, state)(state, steps, weight, bias, state_indices, activation or "none")
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(state)
    return output.squeeze(-1) if input.dim() == 2 else output


# ---- argument checks, in the words of csrc/bindings/causal_conv.cpp ----


def _check_shape(op: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    message = f"{name} must have shape {shape_text(expected)}, got {shape_text(tensor.shape)}"
    require(tuple(tensor.shape) == expected, op, message)


def _check_part(op: str, name: str, tensor: Tensor, input: Tensor) -> None:
    check_same_device(op, name, tensor, "input", input)
    check_same_dtype(op, name, tensor, "input", input)


def _check_weights(op: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_float(op, "input", input)
    dims = f"input must have 3 dimensions (batch, channels, length), got {input.dim()}"
    require(input.dim() == 3, op, dims)
    require(weight.dim() == 2, op, f"weight must have 2 dimensions (channels, width), got {weight.dim()}")
    _check_part(op, "weight", weight, input)
    channels = f"weight has {weight.shape[0]} channels, input has {input.shape[1]}"
    require(weight.shape[0] == input.shape[1], op, channels)
    width = f"weight must be 1 to {MAX_WIDTH} wide, got {weight.shape[1]}"
    require(1 <= weight.shape[1] <= MAX_WIDTH, op, width)
    if bias is not None:
        _check_part(op, "bias", bias, input)
        _check_shape(op, "bias", bias, (input.shape[1],))


def _check_state(op: str, name: str, state: Tensor | None, input: Tensor, weight: Tensor) -> None:
    if state is not None:
        _check_part(op, name, state, input)
        _check_shape(op, name, state, (*input.shape[:2], weight.shape[1] - 1))


def _check_activation(op: str, activation: str) -> None:
    known = activation in ("none", "silu")
    require(known, op, f"activation must be one of none, silu, got '{activation}'")


def _check(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    activation: str,
    return_final_state: bool,
) -> None:
    op = "causal_conv1d"
    _check_weights(op, input, weight, bias)
    _check_state(op, "initial_state", initial_state, input, weight)
    _check_activation(op, activation)


def _check_backward(
    grad_output: Tensor,
    grad_final_state: Tensor | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    activation: str,
    *needs: bool,
) -> None:
    op = "causal_conv1d_backward"
    _check_weights(op, input, weight, bias)
    _check_state(op, "initial_state", initial_state, input, weight)
    _check_state(op, "grad_final_state", grad_final_state, input, weight)
    check_like(op, "grad_output", grad_output, "input", input)
    _check_activation(op, activation)


def _check_update(
    state: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state_indices: Tensor | None,
    activation: str,
) -> None:
    op = "causal_conv1d_update_"
    _check_weights(op, input, weight, bias)
    _check_part(op, "state", state, input)
    slots = input.shape[0]
    if state_indices is not None:
        dtype = state_indices.dtype
        whole = dtype in (torch.int64, torch.int32)
        require(whole, op, f"state_indices must be torch.int64 or torch.int32, got {dtype}")
        check_same_device(op, "state_indices", state_indices, "input", input)
        _check_shape(op, "state_indices", state_indices, (input.shape[0],))
        slots = state.shape[0] if state.dim() == 3 else 0
    _check_shape(op, "state", state, (slots, input.shape[1], weight.shape[1] - 1))
    overlaps = any(stride == 0 and size > 1 for stride, size in zip(state.stride(), state.shape, strict=True))
    require(not overlaps, op, "state must not be expanded: it is written to")
    _check_activation(op, activation)


# ---- fake outputs ----


def _fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    activation: str,
    return_final_state: bool,
) -> tuple[Tensor, Tensor]:
    state = (*input.shape[:2], weight.shape[1] - 1) if return_final_state else (0,)
    return empty_like(input), input.new_empty(state)


def _fake_backward(
    grad_output: Tensor,
    grad_final_state: Tensor | None,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    activation: str,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_initial_state: bool,
) -> tuple[Tensor, ...]:
    state = (*input.shape[:2], weight.shape[1] - 1)
    return (
        empty_like(input) if need_input else input.new_empty(0),
        input.new_empty(weight.shape if need_weight else (0,)),
        input.new_empty(input.shape[1] if need_bias else 0),
        input.new_empty(state if need_initial_state else (0,)),
    )


# ---- autograd ----


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.activation, ctx.returns_state = inputs
    if not ctx.returns_state:
        ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors)


def _backward(ops: Any, ctx: Any, grad_output: Tensor, grad_final_state: Tensor | None) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[:4]
    of_state = grad_final_state if ctx.returns_state else None
    grads = ops.causal_conv1d_backward(grad_output, of_state, *ctx.saved_tensors, ctx.activation, *needs)
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), None, None


def _autocast_update(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The state is written to, and keeps its dtype: the others take it."""
    state, *others, indices, activation = args
    return state, *_registry.cast_to_ambient(tuple(others), state.dtype), indices, activation


_registry.define(
    "causal_conv1d",
    family="causal_conv",
    check=_check,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    autocast=_registry.cast_to_ambient,
)
_registry.define("causal_conv1d_backward", family="causal_conv", check=_check_backward, fake=_fake_backward)
_registry.define(
    "causal_conv1d_update_",
    family="causal_conv",
    check=_check_update,
    fake=lambda state, input, *_: empty_like(input),
    autocast=_autocast_update,
)
