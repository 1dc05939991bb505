"""Products of groups of rows, each with a weight of its own: the layers of a mixture of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from warpwright import _registry
from warpwright._arithmetic import arithmetic_of
from warpwright._backend import call
from warpwright._check import (
    check_activation,
    check_float,
    check_same_device,
    check_same_dtype,
    needs_preact,
    require,
    require_below,
    shape_text,
)
from warpwright.ops._epilogue import check_saved, saved_of, wants_grad


def grouped_matmul(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """`activation(input[r] @ weight[g].T + bias[g])` for each row r of group g.

    Args:
        input: (tokens, in_features), float32, float16, bfloat16 (float64 on the CPU), any strides: the rows of each
            group together, group after group.
        weight: (groups, out_features, in_features), input's dtype, any strides: also
            `(groups, in_features, out_features)` transposed by `.mT`.
        offsets: (groups), int32, on input's device: where the rows of each group end, as `offs` of
            torch.nn.functional.grouped_mm. Group g has rows offsets[g - 1] (0 for the first) to offsets[g] - 1; it may
            have none.
        bias: (groups, out_features), input's dtype, or None.
        activation: see `linear`.

    Returns:
        (tokens, out_features), contiguous, in input's dtype. Rows from offsets[-1] on belong to no group: they are
        zero, and so is their gradient. (torch's grouped_mm leaves them undefined.)

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit; on the CPU also where offsets
            decrease, are negative or exceed the number of tokens.

    On a GPU nothing waits for the offsets, and so nobody checks them: one that lies below an earlier one, or outside 0
    to tokens, counts as that limit, and no other memory is touched.

    Accumulates in float32 (float64 for float64); float32 is multiplied in float32. Differentiable in every float
    argument; a group without rows has gradients of zero. Bitwise the same from run to run. What the activation's
    gradient needs is kept as `linear` keeps it.
    """
    name = activation or "none"
    save_preact = needs_preact(name) and wants_grad(input, weight, bias)
    return call("grouped_matmul", input, weight, offsets, bias, name, arithmetic_of(input)[1], save_preact)[0]


def _check_operands(op: str, input: Tensor, weight: Tensor, offsets: Tensor) -> None:
    check_float(op, "input", input)
    require(input.dim() == 2, op, f"input must have 2 dimensions, got {input.dim()}")
    require_below(input.shape[0], 2**31, op, f"input must have fewer than 2^31 rows, got {input.shape[0]}")
    require(weight.dim() == 3, op, f"weight must have 3 dimensions, got {weight.dim()}")
    check_same_device(op, "weight", weight, "input", input)
    check_same_dtype(op, "weight", weight, "input", input)
    message = f"weight has {weight.shape[2]} input features, input has {input.shape[1]}"
    require(weight.shape[2] == input.shape[1], op, message)
    require(offsets.dtype == torch.int32, op, f"offsets must be torch.int32, got {offsets.dtype}")
    check_same_device(op, "offsets", offsets, "input", input)
    message = f"offsets must have shape {shape_text((weight.shape[0],))}, got {shape_text(offsets.shape)}"
    require(tuple(offsets.shape) == (weight.shape[0],), op, message)


def _check(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    activation: str,
    batch_invariant: bool,
    save_preact: bool,
) -> None:
    op = "grouped_matmul"
    _check_operands(op, input, weight, offsets)
    check_activation(op, activation)
    if bias is not None:
        check_same_device(op, "bias", bias, "input", input)
        check_same_dtype(op, "bias", bias, "input", input)
        message = f"bias must have shape {shape_text(weight.shape[:2])}, got {shape_text(bias.shape)}"
        require(bias.shape == weight.shape[:2], op, message)


def _fake(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    activation: str,
    batch_invariant: bool,
    save_preact: bool,
) -> tuple[Tensor, Tensor]:
    sizes = (input.shape[0], weight.shape[1])
    return input.new_empty(sizes), input.new_empty(sizes if save_preact and needs_preact(activation) else (0,))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, offsets, bias, activation, invariant, _ = inputs
    result, preact = output
    ctx.mark_non_differentiable(preact)
    ctx.activation, ctx.batch_invariant = activation, invariant
    saved = saved_of(activation, result, preact)
    # Without a saved pre-activation it is computed again in the backward pass, from the forward's own arguments.
    ctx.recompute = activation != "none" and saved is None
    ctx.save_for_backward(input, weight, offsets, saved, bias if ctx.recompute else None)


def _backward(ops: Any, ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    input, weight, offsets, saved, bias = ctx.saved_tensors
    if ctx.recompute:
        saved, _ = ops.grouped_matmul(input, weight, offsets, bias, "none", ctx.batch_invariant, False)
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    grads = ops.grouped_matmul_backward(
        grad, input, weight, offsets, saved, ctx.activation, ctx.batch_invariant, *needs
    )
    grad_input, grad_weight, grad_bias = (g if need else None for g, need in zip(grads, needs, strict=True))
    return grad_input, grad_weight, None, grad_bias, None, None, None


def _check_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    saved: Tensor | None,
    activation: str,
    batch_invariant: bool,
    *needs: bool,
) -> None:
    op = "grouped_matmul_backward"
    _check_operands(op, input, weight, offsets)
    check_activation(op, activation)
    check_same_device(op, "grad_output", grad_output, "input", input)
    check_same_dtype(op, "grad_output", grad_output, "input", input)
    sizes = (input.shape[0], weight.shape[1])
    message = f"grad_output must have the shape of the output {shape_text(sizes)}, got {shape_text(grad_output.shape)}"
    require(tuple(grad_output.shape) == sizes, op, message)
    check_saved(op, saved, activation, grad_output)


def _fake_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offsets: Tensor,
    saved: Tensor | None,
    activation: str,
    batch_invariant: bool,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        input.new_empty(input.shape if need_input else (0,)),
        input.new_empty(weight.shape if need_weight else (0,)),
        input.new_empty(weight.shape[:2] if need_bias else (0,)),
    )


_registry.define(
    "grouped_matmul",
    family="grouped",
    check=_check,
    fake=_fake,
    setup_context=_setup,
    backward=_backward,
    autocast=_registry.cast_to_ambient,
)
_registry.define("grouped_matmul_backward", family="grouped", check=_check_backward, fake=_fake_backward)
