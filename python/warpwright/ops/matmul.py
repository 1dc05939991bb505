"""Matrix products with a fused epilogue."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from warpwright import _registry, distributed
from warpwright._arithmetic import arithmetic_of
from warpwright._backend import call
from warpwright._check import (
    check_activation,
    check_float,
    check_precision,
    check_same_device,
    check_same_dtype,
    count_of,
    needs_preact,
    require,
    shape_text,
)
from warpwright.ops._epilogue import (
    check_bias,
    check_operands,
    check_output_like,
    check_saved,
    keeps_preact,
    saved_of,
    wants_grad,
)

#: 8-bit outputs are for inference: there is no gradient in 8 bits.
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_OUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, *_FLOAT8)


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
        activation: None (or "none"), "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "leaky_relu" (slope 0.01)
            or "hardswish".
        residual: (..., out_features), input's dtype, added before the activation.

    Returns:
        (..., out_features), contiguous, in input's dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit.

    Accumulates in float32 (float64 for float64); `warpwright.float32_precision` and `warpwright.batch_invariant` choose
    how. Differentiable in every tensor argument; the gradients of the activation and of the bias are taken in one pass.
    Bitwise the same from run to run. Where a gradient is wanted and the activation's derivative needs the
    pre-activation (gelu, gelu_tanh, silu, hardswish), that is saved from the same pass.
    """
    name = activation or "none"
    if name != "none" and distributed.is_cut(weight, 1):  # Parts of a sum have no activation.
        return call("activation", linear(input, weight, bias, residual=residual), None, name)
    save_preact = needs_preact(name) and wants_grad(input, weight, bias, residual)
    return call("linear", input, weight, bias, residual, name, *arithmetic_of(input), save_preact)[0]


def matmul(
    input: Tensor,
    other: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    activation: str | None = None,
    output_scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`output_scale * activation(alpha * input @ other + bias + beta * residual)`, with torch.matmul's broadcasting.

    Args:
        input: (k), (m, k) or (..., m, k), float32, float16, bfloat16 (float64 on the CPU), any strides.
        other: (k), (k, n) or (..., k, n), input's dtype, any strides. Batch dimensions broadcast.
        bias: (n), input's dtype, or None.
        residual: broadcast to the output's shape, input's dtype, or None. With beta = 0 it is not read.
        alpha, beta, output_scale: numbers.
        activation: see `linear`.
        out_dtype: None for input's dtype; float32, float16 or bfloat16; float8_e4m3fn or float8_e5m2 where no gradient
            is wanted, and then what is too large becomes the largest number. The sum is rounded once, to this dtype.

    Returns:
        What torch.matmul's shape rules say, contiguous, in out_dtype.

    Raises:
        RuntimeError: naming the argument whose dtype, device, rank or shape does not fit.

    Accumulates as `linear` does. Differentiable in every tensor argument. Operands are read where they lie, whatever
    their strides, also those of up to three batch dimensions that do not merge.
    """
    op = "matmul"
    require(input.dim() >= 1 and other.dim() >= 1, op, "input and other must have at least 1 dimension")
    row, column = input.dim() == 1, other.dim() == 1
    a = input.unsqueeze(0) if row else input
    b = other.unsqueeze(1) if column else other
    folded = b.dim() == 2 and a.dim() > 2 and (_merges(a) or wants_grad(other))
    if folded and distributed.is_dtensor(a):  # What is cut along a dimension that is folded would be gathered.
        plain = (alpha, beta, output_scale, out_dtype) == (1.0, 1.0, 1.0, None)
        if plain and not column and (residual is None or residual.shape == (*a.shape[:-1], b.shape[-1])):
            return linear(a, b.mT, bias, activation=activation, residual=residual)
        folded = False
    batch = a.shape[:-2] if folded or b.dim() == 2 else _broadcast(op, a, b)
    sizes = (*batch, a.shape[-2], b.shape[-1])
    if residual is not None:
        residual = _expanded(op, residual, sizes, row, column)
    if folded:
        rows = count_of(a.shape[:-1])  # -1 could be anything where there are no columns.
        a = a.reshape(rows, a.shape[-1])
        residual = None if residual is None else residual.reshape(rows, residual.shape[-1])
    else:
        a, b = a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])
    result = _product(op, a, b, bias, residual, alpha, beta, activation, output_scale, out_dtype)
    if folded:
        result = result.view(sizes)
    if row:
        result = result.squeeze(-2)
    return result.squeeze(-1) if column else result


def bmm(
    input: Tensor,
    mat2: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    activation: str | None = None,
    output_scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`matmul` of (batch, m, k) by (batch, k, n), without broadcasting: as torch.bmm; arguments as `matmul`."""
    op = "bmm"
    for name, tensor in (("input", input), ("mat2", mat2)):
        require(tensor.dim() == 3, op, f"{name} must have 3 dimensions, got {tensor.dim()}")
    message = f"mat2 must have {input.shape[0]} matrices, as input, got {mat2.shape[0]}"
    require(mat2.shape[0] == input.shape[0], op, message)
    _check_pair(op, input, "input", mat2)
    if residual is not None:
        residual = _expanded(op, residual, (*input.shape[:2], mat2.shape[2]))
    return _product(op, input, mat2, bias, residual, alpha, beta, activation, output_scale, out_dtype)


def addmm(
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: float = 1.0,
    alpha: float = 1.0,
    activation: str | None = None,
    output_scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`output_scale * activation(beta * input + alpha * mat1 @ mat2)`, as torch.addmm.

    Args:
        input: broadcast to (m, n), mat1's dtype. One row of it is read as a bias. With beta = 0 it is not read.
        mat1: (m, k); mat2: (k, n); the rest as in `matmul`.
    """
    op = "addmm"
    for name, tensor in (("mat1", mat1), ("mat2", mat2)):
        require(tensor.dim() == 2, op, f"{name} must have 2 dimensions, got {tensor.dim()}")
    _check_pair(op, mat1, "mat1", mat2)
    _check_operand(op, "input", input, "mat1", mat1)
    if beta == 1 and input.shape == (mat2.shape[1],):
        return _product(op, mat1, mat2, input, None, alpha, 1.0, activation, output_scale, out_dtype)
    residual = _expanded(op, input, (mat1.shape[0], mat2.shape[1]), name="input")
    return _product(op, mat1, mat2, None, residual, alpha, beta, activation, output_scale, out_dtype)


def _product(
    op: str,
    input: Tensor,
    other: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    alpha: float,
    beta: float,
    activation: str | None,
    output_scale: float,
    out_dtype: torch.dtype | None,
) -> Tensor:
    """The operator, for operands of one batch shape."""
    name = activation or "none"
    if beta == 0:
        residual = None
    wanted = wants_grad(input, other, bias, residual)
    message = f"out_dtype {out_dtype} has no gradient; call it under torch.no_grad(), or ask for a wider dtype"
    require(not (wanted and out_dtype in _FLOAT8), op, message)
    return call(
        "matmul", input, other, bias, residual, float(alpha), float(beta), name, float(output_scale), out_dtype,
        *arithmetic_of(input), wanted,
    )[0]  # fmt: skip


def _check_pair(op: str, input: Tensor, name: str, mat2: Tensor) -> None:
    """What the operator would say of its own arguments, of those of the function that was called."""
    _check_operand(op, "mat2", mat2, name, input)
    message = f"mat2 has {mat2.shape[-2]} rows, {name} has {input.shape[-1]} columns"
    require(mat2.shape[-2] == input.shape[-1], op, message)


def _check_operand(op: str, name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    check_same_device(op, name, tensor, like_name, like)
    if not torch._C._is_any_autocast_enabled():  # Which casts them all.
        check_same_dtype(op, name, tensor, like_name, like)


def _merges(tensor: Tensor) -> bool:
    """Whether all dimensions but the last are one in memory."""
    rows = [(size, stride) for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True) if size != 1]
    return all(outer[1] == inner[0] * inner[1] for outer, inner in itertools.pairwise(rows))


def _broadcast(op: str, a: Tensor, b: Tensor) -> torch.Size:
    try:
        return torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except RuntimeError:
        message = f"other must have a batch that broadcasts with input {shape_text(a.shape)}, got {shape_text(b.shape)}"
        raise RuntimeError(f"warpwright: {op}: {message}") from None


def _expanded(
    op: str, tensor: Tensor, sizes: tuple[int, ...], row: bool = False, column: bool = False, name: str = "residual"
) -> Tensor:
    """`tensor` broadcast to an output, whose `row` or `column` of one element it does not have."""
    shape = sizes[: len(sizes) - 2] + (() if row else sizes[-2:-1]) + (() if column else sizes[-1:])
    try:
        tensor = tensor.expand(shape)
    except RuntimeError:
        message = f"{name} must broadcast to the output {shape_text(shape)}, got {shape_text(tensor.shape)}"
        raise RuntimeError(f"warpwright: {op}: {message}") from None
    tensor = tensor.unsqueeze(-1) if column else tensor
    return tensor.unsqueeze(-2) if row else tensor


def _check_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    save_preact: bool,
) -> None:
    op = "linear"
    check_operands(op, input, "weight", weight)
    check_activation(op, activation)
    check_bias(op, "bias", bias, input, weight.shape[0])
    if residual is not None:
        check_output_like(op, "residual", residual, input, weight.shape[0])
        check_same_dtype(op, "residual", residual, "input", input)
    check_precision(op, precision)


def _fake_linear(
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
    return input.new_empty(sizes), input.new_empty(sizes if save_preact and needs_preact(activation) else (0,))


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, weight, bias, residual, activation, precision, batch_invariant, _ = inputs
    result, preact = output
    ctx.mark_non_differentiable(preact)
    ctx.settings = activation, precision, batch_invariant
    saved = saved_of(activation, result, preact)
    # Without a saved pre-activation it is computed again in the backward pass, from the forward's own arguments.
    ctx.recompute = activation != "none" and saved is None
    ctx.save_for_backward(input, weight, saved, *((bias, residual) if ctx.recompute else ()))


def _backward_linear(ops: Any, ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    input, weight, saved, *rest = ctx.saved_tensors
    if ctx.recompute:
        saved, _ = ops.linear(input, weight, *rest, "none", *ctx.settings[1:], False)
    needs = ctx.needs_input_grad[:4]
    grads = ops.linear_backward(grad, input, weight, saved, *ctx.settings, *needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), *[None] * 4)


def _check_linear_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    activation: str,
    precision: str,
    batch_invariant: bool,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
) -> None:
    op = "linear_backward"
    check_operands(op, input, "weight", weight)
    check_activation(op, activation)
    check_precision(op, precision)
    check_output_like(op, "grad_output", grad_output, input, weight.shape[0])
    check_same_dtype(op, "grad_output", grad_output, "input", input)
    check_saved(op, saved, activation, grad_output)


def _fake_grads(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    features: int,
    need_input: bool,
    need_weight: bool,
    need_bias: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        input.new_empty(input.shape if need_input else (0,)),
        weight.new_empty(weight.shape if need_weight else (0,)),
        weight.new_empty((features,) if need_bias else (0,)),
        input.new_empty(grad_output.shape if need_residual else (0,)),
    )


def _fake_linear_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, saved: Tensor | None, activation: str, precision: str,
    batch_invariant: bool, *needs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _fake_grads(grad_output, input, weight, weight.shape[0], *needs)


def _check_matmul_operands(op: str, input: Tensor, other: Tensor) -> None:
    check_float(op, "input", input)
    require(input.dim() >= 2, op, f"input must have at least 2 dimensions, got {input.dim()}")
    message = f"other must have as many dimensions as input ({input.dim()}), got {other.dim()}"
    require(other.dim() == input.dim(), op, message)
    check_same_device(op, "other", other, "input", input)
    check_same_dtype(op, "other", other, "input", input)
    message = f"other has {other.shape[-2]} rows, input has {input.shape[-1]} columns"
    require(other.shape[-2] == input.shape[-1], op, message)
    message = f"other must have the batch of input {shape_text(input.shape)}, got {shape_text(other.shape)}"
    require(other.shape[:-2] == input.shape[:-2], op, message)


def _check_matmul(
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
) -> None:
    op = "matmul"
    _check_matmul_operands(op, input, other)
    check_bias(op, "bias", bias, input, other.shape[-1])
    if residual is not None:
        check_output_like(op, "residual", residual, input, other.shape[-1])
        check_same_dtype(op, "residual", residual, "input", input)
    message = (
        "out_dtype must be input's dtype or, unless that is float64, float32, float16, bfloat16, float8_e4m3fn or "
        f"float8_e5m2, got {out_dtype}"
    )
    fits = out_dtype in (None, input.dtype) or (out_dtype in _OUT_DTYPES and input.dtype != torch.float64)
    require(fits, op, message)
    check_activation(op, activation)
    check_precision(op, precision)


def _fake_matmul(
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
    sizes = (*input.shape[:-1], other.shape[-1])
    keep = keeps_preact(input.dtype, activation, output_scale, out_dtype, save_preact)
    return input.new_empty(sizes, dtype=out_dtype or input.dtype), input.new_empty(sizes if keep else (0,))


def _setup_matmul(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, other, bias, residual, alpha, beta, activation, output_scale, out_dtype, *arithmetic, save_preact = inputs
    result, preact = output
    ctx.mark_non_differentiable(*((preact, result) if out_dtype in _FLOAT8 else (preact,)))
    ctx.settings = alpha, beta, activation, output_scale
    ctx.arithmetic = tuple(arithmetic)
    kept = keeps_preact(input.dtype, activation, output_scale, out_dtype, save_preact)
    lost = keeps_preact(input.dtype, activation, output_scale, out_dtype, True) and not kept
    saved = preact if kept else None if lost or activation == "none" else result
    # What was not kept is computed again in the backward pass, from the forward's own arguments.
    ctx.recompute = lost
    ctx.save_for_backward(input, other, saved, *((bias, residual) if lost else ()))


def _backward_matmul(ops: Any, ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    input, other, saved, *rest = ctx.saved_tensors
    alpha, beta, activation, _ = ctx.settings
    if ctx.recompute:
        again = "none" if needs_preact(activation) else activation
        saved, _ = ops.matmul(input, other, *rest, alpha, beta, again, 1.0, None, *ctx.arithmetic, False)
    needs = ctx.needs_input_grad[:4]
    grads = ops.matmul_backward(grad, input, other, saved, *ctx.settings, *ctx.arithmetic, *needs)
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), *[None] * 8)


def _check_matmul_backward(
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
) -> None:
    op = "matmul_backward"
    _check_matmul_operands(op, input, other)
    check_activation(op, activation)
    check_precision(op, precision)
    check_output_like(op, "grad_output", grad_output, input, other.shape[-1])
    check_saved(op, saved, activation, grad_output.to(input.dtype))


def _fake_matmul_backward(
    grad_output: Tensor, input: Tensor, other: Tensor, saved: Tensor | None, alpha: float, beta: float,
    activation: str, output_scale: float, precision: str, batch_invariant: bool, *needs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _fake_grads(grad_output, input, other, other.shape[-1], *needs)


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
_registry.define(
    "matmul",
    family="matmul",
    check=_check_matmul,
    fake=_fake_matmul,
    setup_context=_setup_matmul,
    backward=_backward_matmul,
    autocast=_registry.cast_to_ambient,
)
_registry.define("matmul_backward", family="matmul", check=_check_matmul_backward, fake=_fake_matmul_backward)
